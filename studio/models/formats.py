"""Which files of a model are accepted: formats that cannot contain code, with names that stay in their folder.

Accepted are safetensors and GGUF weights, and text files (configurations, tokenizers, templates, licences). Pickles are
rejected by name, because loading a pickle can run code.

Try it: ``studio.models.formats.choose({"model.safetensors": 10, "setup.py": 1}, None)``
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from studio.errors import ModelError, UnknownName
from studio.files import open_regular
from studio.weights.headers import read_header

Report = Callable[[str, int, int | None], None]
"""Progress callback: what, bytes done, bytes in total (None: unknown)."""

WEIGHTS = (".safetensors", ".gguf")
TEXTS = (".json", ".jsonl", ".txt", ".jinja", ".model", ".tiktoken", ".yaml", ".md")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".tar")  # `.tar`: as PyTorch's tutorials name checkpoints
LICENCES = ("licen", "notice", "copying")
MOST_TEXT = 256 << 20  # bytes of one text; the largest tokenizers in use have 35 MB
CONVERT = (
    "`studio models pull --convert {source}` reads the tensors of a PyTorch checkpoint, runs none of its code, and"
    " keeps them as safetensors"
)


def silent(what: str, done: int, total: int | None) -> None:
    """A progress callback that does nothing."""


def check_name(name: str) -> str:
    """Return `name` if it is a plain relative path with `/`. Raises ModelError for one that could leave its folder."""
    parts = name.split("/")
    bad = any(part in ("", ".", "..") or len(part.encode("utf-8", "replace")) > 255 for part in parts)
    if bad or len(parts) > 32 or "\\" in name or ":" in parts[0] or not name.isprintable():
        raise ModelError(f"the file name {name!r} is refused: it must be a plain path inside the model's folder")
    return name


def is_licence(name: str) -> bool:
    """Whether a file is a licence or notice."""
    return PurePosixPath(name).name.lower().startswith(LICENCES)


def is_safe(name: str) -> bool:
    """Whether a file of this name is accepted. Files in `.dist-info` are not, except licences."""
    path = PurePosixPath(name)
    ours = not any(part.endswith(".dist-info") or part.startswith(".") for part in path.parts)
    return is_licence(name) or (ours and path.suffix.lower() in WEIGHTS + TEXTS)


def is_pickle(name: str) -> bool:
    """Whether a file of this name is, or may be, a pickle."""
    return PurePosixPath(name).suffix.lower() in PICKLES


def choose(sizes: Mapping[str, int], wanted: str | None, source: str, *, pickles: bool = False) -> list[str]:
    """Choose names from `sizes` (name -> bytes): only `wanted`, or all in safe formats.

    With `pickles`, a wanted pickle, or all pickles if they are the only weights, are included for conversion. `source`
    is the name of the model for the hint.

    Raises UnknownName if `wanted` does not exist, ModelError if its format is not safe, if pickles are the only
    weights, if nothing is left, or if a text file is larger than 256 MiB.
    """
    if wanted is None:
        chosen = sorted(name for name in sizes if is_safe(name))
        unsafe = sorted(name for name in sizes if is_pickle(name))
        if unsafe and not any(name.lower().endswith(WEIGHTS) for name in chosen):
            if not pickles:
                raise refuse_pickle(unsafe[0], source)
            chosen = sorted(chosen + unsafe)
        if all(is_licence(name) for name in chosen):
            raise ModelError("it has no file in a safe format", hint=f"accepted are {', '.join(WEIGHTS + TEXTS)}")
    else:
        if wanted not in sizes:
            raise UnknownName("file of it", wanted, sorted(filter(is_safe, sizes)))
        if is_pickle(wanted) and not pickles:
            raise refuse_pickle(wanted, source)
        if not is_safe(wanted) and not is_pickle(wanted):
            raise ModelError(f"`{wanted}` is not in a safe format", hint=f"accepted are {', '.join(WEIGHTS + TEXTS)}")
        chosen = [wanted]
    for name in chosen:
        if not is_pickle(name) and not name.lower().endswith(WEIGHTS) and sizes[name] > MOST_TEXT:
            raise ModelError(f"`{name}` has {sizes[name]:,} bytes; the limit for text files is {MOST_TEXT:,}")
    return chosen


def check_total(total: int, limit: int, folder: Path) -> None:
    """Raise ModelError if `total` bytes are more than `limit`, or than the free space on `folder`'s disk."""
    if total > limit:
        raise ModelError(f"it has {total:,} bytes; the limit is {limit:,}", hint="raise `--limit`")
    there = next(each for each in (folder, *folder.parents) if each.exists())
    stat = os.statvfs(there)
    if total > (free := stat.f_bavail * stat.f_frsize):
        raise ModelError(f"it has {total:,} bytes, but `{there}` has only {free:,} bytes free", hint="free some space")


def check_content(path: Path) -> None:
    """Raise ModelError if a weights file does not start with its format's header."""
    suffix, size = path.suffix.lower(), path.stat().st_size
    with open_regular(path) as file:
        head = b"" if suffix == ".safetensors" else file.read(4)
        if suffix == ".safetensors" and read_header(file, size) is None:
            raise ModelError(f"`{path.name}` is not a safetensors file, or is truncated")
    if suffix == ".gguf" and head != b"GGUF":
        raise ModelError(f"`{path.name}` is not a GGUF file")


def sha256_of(path: Path, report: Report = silent) -> str:
    """The sha256 of a file, in hex."""
    digest, done, size = hashlib.sha256(), 0, path.stat().st_size
    with open_regular(path) as file:
        while block := file.read(4 << 20):
            digest.update(block)
            done += len(block)
            report(f"checking {path.name}", done, size)
    return digest.hexdigest()


def refuse_pickle(name: str, source: str) -> ModelError:
    """The error for a file that may be a pickle, with how to convert it; `source` is what `models pull` takes."""
    message = f"`{name}` is refused: a {PurePosixPath(name).suffix} file may be a pickle, and loading one runs its code"
    return ModelError(message, hint=CONVERT.format(source=source))
