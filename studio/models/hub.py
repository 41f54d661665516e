"""Downloading models from a Hugging Face hub, through `huggingface_hub` as the user has configured it.

The revision is resolved to a commit, and every file is checked against the hub's hash for that commit. Partial
downloads are resumed (HTTP ranges). `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` work as in the client. Redirects are
checked (see `_check_redirect`).

Try it: ``HF_ENDPOINT=http://localhost:8000 studio models pull hf:owner/name``
"""

from __future__ import annotations

import hashlib
import ipaddress
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path
from typing import Any

from studio.errors import ModelError, StudioError
from studio.files import open_regular
from studio.models.formats import Report, check_name, check_total, choose
from studio.models.source import ModelSource

PART = ".part"
CHUNK = 1 << 20  # bytes
RETRIES, RETRY_AFTER_S = 5, 1.0  # of a connection that brings nothing


@dataclass(frozen=True)
class Blob:
    """A file on the hub: its size in bytes, and its sha256 (large files) or git hash (small ones)."""

    name: str
    size: int
    sha256: str | None
    git: str | None

    def matches(self, path: Path) -> bool:
        """Whether the file at `path` is this one."""
        if not path.is_file() or path.stat().st_size != self.size:
            return False
        digest = hashlib.sha256() if self.sha256 else hashlib.sha1(f"blob {self.size}\0".encode())
        with open_regular(path) as file:
            while block := file.read(4 << 20):
                digest.update(block)
        return digest.hexdigest() == (self.sha256 or self.git)


def fetch(
    source: ModelSource, into: Path, limit: int, report: Report, *, commit: str | None = None, pickles: bool = False
) -> str:
    """Download the chosen files of a repository into `into`, which may have some already; return the commit.

    `commit` is the pinned one, which takes precedence over the source's revision. Raises ModelError, UnknownName.
    """
    with _explained(source), _redirects_checked():
        commit, blobs = _blobs(source, commit or source.version)
        sizes = {name: blob.size for name, blob in blobs.items()}
        chosen = [blobs[name] for name in choose(sizes, source.file, str(source), pickles=pickles)]
        _sweep(into, chosen)
        check_total(sum(blob.size for blob in chosen), limit, into)
        for blob in chosen:
            _download(source, commit, blob, into / blob.name, report)
    return commit


def _blobs(source: ModelSource, revision: str | None) -> tuple[str, dict[str, Blob]]:
    """The commit of a revision, and its files by name."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(source.name, revision=revision, files_metadata=True)
    blobs = {}
    for each in info.siblings or ():
        sha256 = each.lfs.sha256 if each.lfs else None
        if each.size is None or not (sha256 or each.blob_id):
            raise ModelError(f"the hub gives no size or hash for `{each.rfilename}`, so it cannot be verified")
        blobs[check_name(each.rfilename)] = Blob(each.rfilename, each.size, sha256, each.blob_id)
    if info.sha is None:
        raise ModelError(f"the hub gives no commit for `{source.name}`")
    return info.sha, blobs


def _sweep(into: Path, chosen: list[Blob]) -> None:
    """Remove existing files that do not belong to `chosen`."""
    for path in [each for each in into.rglob("*") if each.is_file()]:
        if not any(path in (into / blob.name, _part(into / blob.name, blob)) for blob in chosen):
            path.unlink()


def _part(target: Path, blob: Blob) -> Path:
    return target.with_name(f"{target.name[:200]}.{(blob.sha256 or blob.git or '')[:12]}{PART}")


def _download(source: ModelSource, commit: str, blob: Blob, target: Path, report: Report) -> None:
    """Download one file, or the rest of it, to `target`."""
    from huggingface_hub import errors, hf_hub_url

    if blob.matches(target):
        return
    target.unlink(missing_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = _part(target, blob)
    url = hf_hub_url(source.name, blob.name, revision=commit)
    with part.open("ab") as file:
        if file.tell() > blob.size:
            file.truncate(0)
        left = RETRIES
        while (begun := file.tell()) < blob.size:
            try:
                _receive(url, blob, file, report)
            except errors.HfHubHTTPError:
                raise
            except errors.HTTPError:  # type: ignore[attr-defined]  # httpx's or httpx2's: the connection was cut
                left = RETRIES if file.tell() > begun else left - 1
                if not left:
                    raise
                time.sleep(RETRY_AFTER_S)
    if not blob.matches(part):
        part.unlink()
        raise ModelError(f"`{blob.name}` does not match the hash published by the hub", hint="try again")
    part.replace(target)


def _receive(url: str, blob: Blob, file: BufferedWriter, report: Report) -> None:
    """Append what a file lacks, as far as the connection lasts. Raises the client's errors, and ModelError for a server
    that sends more than it announced.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import (  # type: ignore[attr-defined]  # documented, not in `__all__`
        build_hf_headers,
        hf_raise_for_status,
        http_stream_backoff,
    )

    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}  # a range counts plain bytes
    if file.tell():
        headers["Range"] = f"bytes={file.tell()}-"
    _watch_redirects()
    # Errors of the connection are retried by the caller, so that it goes on where the file ends.
    with http_stream_backoff("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
                             retry_on_exceptions=(), retry_on_status_codes=(408, 429)) as response:  # fmt: skip
        hf_raise_for_status(response)
        if response.status_code == 200:  # the whole file, whatever range was asked for
            file.truncate(0)
        for data in response.iter_bytes(CHUNK):
            if file.tell() + len(data) > blob.size:
                file.truncate(0)
                raise ModelError(f"the hub sends more than the announced {blob.size:,} bytes of `{blob.name}`")
            file.write(data)
            report(blob.name, file.tell(), blob.size)


_checking: ContextVar[bool] = ContextVar("studio_redirects_checked", default=False)


@contextmanager
def _redirects_checked() -> Iterator[None]:
    """Call `_check_redirect` for every response of the client, within the context and in this thread."""
    _watch_redirects()
    token = _checking.set(True)
    try:
        yield
    finally:
        _checking.reset(token)


def _watch_redirects() -> None:
    """Make the client's session call `_check_redirect`. After a failed connection the client opens another session."""
    from huggingface_hub import get_session

    session = get_session()
    hooks = session.event_hooks
    if _check_redirect not in hooks.get("response", []):
        session.event_hooks = {**hooks, "response": [*hooks.get("response", []), _check_redirect]}


def _check_redirect(response: Any) -> None:
    """Raise ModelError for a redirect to a scheme other than https, or from a public host to this machine or its
    network (SSRF). A link-local address, where clouds serve credentials, is reached only from a link-local one.

    Names are resolved here and again by the connection, so DNS rebinding is not detected.
    """
    if not _checking.get() or not response.has_redirect_location:
        return
    old, new = response.request.url, response.request.url.join(response.headers["location"])
    refused = ""
    if new.scheme not in (old.scheme, "https"):
        refused = f"from {old.scheme} to {new.scheme}"
    elif new.host != old.host:
        before, after = _reach(old.host), _reach(new.host)
        if (after == "link-local" or (after and not before)) and after != before:
            refused = f"to `{new.host}`, a {after} address"
    if refused:
        hint = "set HF_ENDPOINT to that address if you trust it"
        raise ModelError(f"`{old.host}` redirects {refused}, which is not followed", hint=hint)


def _reach(host: str) -> str:
    """`link-local` or `private` for a host that is not public; empty for a public or unknown one."""
    try:
        found = {each[4][0] for each in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):  # unknown here: a proxy may know it
        return ""
    addresses = [ipaddress.ip_address(str(each).partition("%")[0]) for each in found]
    plain = [getattr(each, "ipv4_mapped", None) or each for each in addresses]
    if any(each.is_link_local for each in plain):
        return "link-local"
    return "private" if any(not each.is_global for each in plain) else ""


@contextmanager
def _explained(source: ModelSource) -> Iterator[None]:
    """Turn the client's errors, which are paragraphs long, into one line each."""
    from huggingface_hub import errors

    try:
        yield
    except StudioError:
        raise
    except errors.GatedRepoError as error:
        hint = "accept its terms on the hub's page, then `hf auth login`"
        raise ModelError(f"`{source}` requires accepting its terms", hint=hint) from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"`hf:{source.name}` has no revision `{source.version}`") from error
    except errors.RepositoryNotFoundError as error:
        hint = "check the name; private models need `hf auth login`"
        raise ModelError(f"the hub has no model `{source.name}`, or you have no access to it", hint=hint) from error
    except errors.OfflineModeIsEnabled as error:
        raise ModelError(f"`{source}` cannot be downloaded: the client is offline (`HF_HUB_OFFLINE`)") from error
    except (OSError, ValueError, errors.HTTPError) as error:  # type: ignore[attr-defined]  # httpx's or httpx2's
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        hint = "check the network and run the command again: it resumes the download"
        raise ModelError(f"`{source}` could not be downloaded: {said}", hint=hint) from error
