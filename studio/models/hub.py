"""Models of a hub that speaks Hugging Face's protocol, through `huggingface_hub` as the user has it configured.

The revision is resolved to a commit, and every file is checked against the hash that the hub has for that commit. What
was fetched of a file stays, and the next try asks for the rest (HTTP ranges). `HF_ENDPOINT`, `HF_TOKEN` and
`HF_HUB_OFFLINE` mean what they mean to the client. Redirects are followed within bounds (see `_check_redirect`). It
knows nothing of lock files.

Try it: ``HF_ENDPOINT=http://localhost:8000 studio models pull hf:owner/name``
"""

from __future__ import annotations

import hashlib
import ipaddress
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self, cast

from studio.errors import ModelError, StudioError
from studio.files import open_regular
from studio.models.formats import Report, check_name, check_total, choose
from studio.models.source import Source

PART = ".part"


@dataclass(frozen=True)
class Blob:
    """A file as the hub has it: bytes, and its sha256 (large files) or git's own hash (small ones)."""

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
    source: Source, into: Path, limit: int, report: Report, *, commit: str | None = None, pickles: bool = False
) -> str:
    """Put the chosen files of a repository into `into`, which may hold some from before; return the commit.

    `commit` is the pinned one, which goes before the source's revision. Raises ModelError, UnknownName.
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


def _blobs(source: Source, revision: str | None) -> tuple[str, dict[str, Blob]]:
    """The commit that a revision means, and its files by name."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(source.name, revision=revision, files_metadata=True)
    blobs = {}
    for each in info.siblings or ():
        sha256 = each.lfs.sha256 if each.lfs else None
        if each.size is None or not (sha256 or each.blob_id):
            raise ModelError(f"the hub tells neither size nor hash of `{each.rfilename}`, so it cannot be checked")
        blobs[check_name(each.rfilename)] = Blob(each.rfilename, each.size, sha256, each.blob_id)
    if info.sha is None:
        raise ModelError(f"the hub does not say which commit of `{source.name}` this is")
    return info.sha, blobs


def _sweep(into: Path, chosen: list[Blob]) -> None:
    """Remove what is there from before and belongs to none of `chosen`."""
    for path in [each for each in into.rglob("*") if each.is_file()]:
        if not any(path in (into / blob.name, _part(into / blob.name, blob)) for blob in chosen):
            path.unlink()


def _part(target: Path, blob: Blob) -> Path:
    return target.with_name(f"{target.name[:200]}.{(blob.sha256 or blob.git or '')[:12]}{PART}")


def _download(source: Source, commit: str, blob: Blob, target: Path, report: Report) -> None:
    """Fetch one file, or the rest of it, into `target`."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented, not in `__all__`

    if blob.matches(target):
        return
    target.unlink(missing_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = _part(target, blob)
    begun = part.stat().st_size if part.exists() else 0
    if begun > blob.size:
        part.unlink()
        begun = 0
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}  # a range counts plain bytes

    def bar(**told: Any) -> _Bar:
        return _Bar(blob, told.get("initial", 0), report)

    url = hf_hub_url(source.name, blob.name, revision=commit)
    with part.open("ab") as file:
        http_get(
            url, cast(Any, _Bounded(file, blob)), resume_size=begun, headers=headers,
            expected_size=blob.size, displayed_filename=blob.name, tqdm_class=bar,  # type: ignore[arg-type]
        )  # fmt: skip
    if not blob.matches(part):
        part.unlink()
        raise ModelError(f"what came for `{blob.name}` is not what the hub has a hash of", hint="try it again")
    part.replace(target)


class _Bounded:
    """A file that takes no more bytes than the blob has: a server may send for ever."""

    def __init__(self, file: Any, blob: Blob) -> None:
        self._file, self._blob = file, blob
        self.seek, self.tell, self.truncate, self.flush = file.seek, file.tell, file.truncate, file.flush

    def write(self, data: bytes) -> int:
        if self._file.tell() + len(data) > self._blob.size:
            self._file.truncate(0)
            raise ModelError(f"the hub sends more for `{self._blob.name}` than the {self._blob.size:,} bytes it said")
        return int(self._file.write(data))


class _Bar:
    """What the client takes for a tqdm bar: it hands the count on."""

    def __init__(self, blob: Blob, done: int, report: Report) -> None:
        self._blob, self._done, self._report = blob, done, report

    def update(self, count: int) -> None:
        self._done += count
        self._report(self._blob.name, self._done, self._blob.size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


_checking: ContextVar[bool] = ContextVar("studio_redirects_checked", default=False)


@contextmanager
def _redirects_checked() -> Iterator[None]:
    """Let `_check_redirect` see every answer that the client gets meanwhile, in this thread."""
    _install()
    token = _checking.set(True)
    try:
        yield
    finally:
        _checking.reset(token)


@cache
def _install() -> None:
    """Have every client that `huggingface_hub` makes from now on, by whatever factory, call `_check_redirect`."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http

    made = _http._GLOBAL_CLIENT_FACTORY

    def factory() -> Any:
        client = made()
        hooks = client.event_hooks
        client.event_hooks = {**hooks, "response": [*hooks.get("response", []), _check_redirect]}
        return client

    set_client_factory(factory)


def _check_redirect(response: Any) -> None:
    """Raise ModelError for an answer that leads to another scheme than https, or from a public host to this machine or
    its network. A link-local address, where clouds keep their credentials, is reached from a link-local one only.

    Names are looked up here and once more by the connection, so a name server that lies to one of them is not noticed.
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
    """What kind of address a host has that not all the world can reach; nothing for a public or an unknown one."""
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
def _explained(source: Source) -> Iterator[None]:
    """Turn the client's errors into one line each; its own say what to do in paragraphs."""
    from huggingface_hub import errors

    try:
        yield
    except StudioError:
        raise
    except errors.GatedRepoError as error:
        hint = "accept its terms on the hub's page, then `hf auth login`"
        raise ModelError(f"`{source}` is given only to those who accept its terms", hint=hint) from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"`hf:{source.name}` has no revision `{source.version}`") from error
    except errors.RepositoryNotFoundError as error:
        hint = "check its name; a private one needs `hf auth login`"
        raise ModelError(f"the hub has no model `{source.name}`, or does not show it to you", hint=hint) from error
    except errors.OfflineModeIsEnabled as error:
        raise ModelError(f"`{source}` cannot be fetched: the client is offline (`HF_HUB_OFFLINE`)") from error
    except (OSError, ValueError, errors.HTTPError) as error:  # type: ignore[attr-defined]  # httpx's or httpx2's
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        hint = "look to the network; what was fetched is kept, and the same command goes on there"
        raise ModelError(f"`{source}` could not be fetched: {said}", hint=hint) from error
