"""SHA-256 of weight files, computed once per process and checked against a ``SHA256SUMS`` file; writing that file.

Try it: ``sha256sum -c SHA256SUMS`` in a folder of weights says the same
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from studio.errors import WeightsError
from studio.files import open_regular

SUMS = "SHA256SUMS"
_hashes: dict[tuple[str, int, int], str] = {}


def hash_weights(paths: Iterable[Path]) -> dict[str, str]:
    """Return file name -> sha256 for weight files, each checked against a ``SHA256SUMS`` that lists it.

    Names are relative to the folder of the ``SHA256SUMS``, else to the files' common folder. Raises WeightsError if a
    file is missing, unreadable or has another hash than listed.
    """
    files = [Path(path).absolute() for path in paths]
    common = Path(os.path.commonpath([file.parent for file in files])) if files else Path()
    hashes = {}
    for file in files:
        actual = sha256_once(file)
        listed = _listed(file)
        if listed and listed[1] != actual:
            raise WeightsError(
                file,
                f"the weights `{file}` are damaged: their sha256 is {actual}; `{SUMS}` lists {listed[1]}",
                expected=listed[1],
                actual=actual,
                hint=remedy(file),
            )
        hashes[(listed[0] if listed else file.relative_to(common).as_posix())] = actual
    return hashes


def remedy(file: Path) -> str:
    """What to do about a weight file that is missing or damaged: one of a Python package, or of a model."""
    packaged = any((folder / "__init__.py").exists() for folder in file.absolute().parents)
    return "reinstall the package" if packaged else "download the model again, or create it again"


def write(folder: Path) -> None:
    """Write ``SHA256SUMS``, in the form of ``sha256sum``, for the safetensors files in a folder and its subfolders."""
    lines = []
    for path in sorted(folder.rglob("*.safetensors")):
        with open_regular(path) as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        lines.append(f"{digest}  {path.relative_to(folder).as_posix()}\n")
    (folder / SUMS).write_text("".join(lines), "utf-8")


def _listed(file: Path) -> tuple[str, str] | None:
    """Find (name, sha256) of a file in the nearest SHA256SUMS; lines are as ``sha256sum`` writes them."""
    for folder in list(file.parents)[:3]:
        sums = folder / SUMS
        if not sums.is_file():
            continue
        name = file.relative_to(folder).as_posix()
        for line in sums.read_text(encoding="utf-8").splitlines():
            digest, _, listed = line.strip().partition(" ")
            if listed.strip().removeprefix("*").removeprefix("./") == name:
                return name, digest.lower()
    return None


def check_expected(expected: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Raise WeightsError if hashes by file name differ from those that a request expects; it may expect none."""
    if expected and expected != found:
        names = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        message = f"the weights differ from the request's `sha256`: {', '.join(f'`{name}`' for name in names[:5])}"
        raise WeightsError(Path(names[0]), message, hint="leave out `sha256` to use the weights that are here")


def sha256_once(file: Path) -> str:
    """Hash a file, once per process for the same path, size and modification time."""
    try:
        stat = file.stat()
        key = (str(file), stat.st_size, stat.st_mtime_ns)
        if key not in _hashes:
            with open_regular(file) as opened:
                _hashes[key] = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        message = f"the weights `{file}` cannot be read: {error.strerror or error}"
        raise WeightsError(file, message, hint=remedy(file)) from error
    return _hashes[key]
