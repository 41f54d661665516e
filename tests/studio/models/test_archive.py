"""Hostile archives are refused before anything is written."""

from __future__ import annotations

import gzip
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio.errors import ModelError
from studio.models.archive import open_archive

from .conftest import tgz

EVIL = [
    "../a.json", "/a.json", "a/../../b.json", "a//b.json", "./a.json", "a\\b.json", "C:/a.json", "a\nb.json",
    "a/" * 40 + "b",
]  # fmt: skip


def zipped(path: Path, *entries: tuple[zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry, data in entries:
            archive.writestr(entry, data, zipfile.ZIP_DEFLATED)
    return path


def unpack(path: Path, **limits: int) -> dict[str, bytes]:
    into = path.parent / "into"
    try:
        with open_archive(path, **limits) as archive:
            archive.extract(archive.sizes, into)
    finally:
        beside = {each.name for each in path.parent.iterdir()} - {path.name, "into"}
        assert not beside, "something was written outside"
    return {each.relative_to(into).as_posix(): each.read_bytes() for each in into.rglob("*") if each.is_file()}


@pytest.fixture
def room(tmp_path: Path) -> Path:
    (tmp_path / "room").mkdir()
    return tmp_path / "room"


@pytest.mark.parametrize("kind", ["whl", "tgz"])
def test_unpacks(room: Path, kind: str) -> None:
    files = {"a.json": b"{}", "sub/b.txt": b"x" * 100_000, "empty.txt": b""}
    if kind == "whl":
        path = zipped(room / "x.whl", *((zipfile.ZipInfo(name), data) for name, data in files.items()))
    else:
        path = tgz(room / "x.tgz", files)
    assert unpack(path) == files


@pytest.mark.parametrize("name", EVIL)
def test_names_that_climb_out(room: Path, name: str) -> None:
    with pytest.raises(ModelError, match="refused"):
        unpack(zipped(room / "x.whl", (zipfile.ZipInfo("ok.json"), b""), (zipfile.ZipInfo(name), b"{}")))
    (room / "x.whl").unlink()
    with pytest.raises(ModelError, match="refused"):
        unpack(tgz(room / "y.tgz", {"ok.json": b"", name: b"{}"}))


def test_links_and_devices(room: Path) -> None:
    link = zipfile.ZipInfo("a.json")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(ModelError, match="link or a device"):
        unpack(zipped(room / "x.whl", (link, b"/etc/passwd")))
    (room / "x.whl").unlink()
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
        entry = tarfile.TarInfo("a.json")
        entry.type, entry.linkname = kind, "/etc/passwd"
        with tarfile.open(room / "y.tgz", "w:gz") as archive:
            archive.addfile(entry)
        with pytest.raises(ModelError, match="link or a device"):
            unpack(room / "y.tgz")


def test_a_bomb(room: Path) -> None:
    zeros = b"\0" * (100 << 20)
    path = zipped(room / "x.whl", (zipfile.ZipInfo("a.txt"), zeros))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(ModelError, match="would unpack to more than"):
        unpack(path)
    path.unlink()
    with pytest.raises(ModelError, match="would unpack to more than"):
        unpack(tgz(room / "y.tgz", {"a.txt": zeros}))


def test_a_header_that_asks_for_gigabytes(room: Path) -> None:
    """tarfile reads an extended header whole, as large as it says it is."""
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 4 << 30
    with gzip.open(room / "y.tgz", "wb") as file:
        file.write(header.tobuf(tarfile.USTAR_FORMAT) + b"\0" * (1 << 20))
    with pytest.raises(ModelError, match="has a header of"):
        unpack(room / "y.tgz")


def test_the_limit(room: Path) -> None:
    path = tgz(room / "y.tgz", {"a.txt": b"x" * 1000, "b.txt": b"x" * 1000})
    with pytest.raises(ModelError, match="2,000 bytes; the limit is 1,999") as caught:
        unpack(path, limit=1999)
    assert "--limit" in (caught.value.hint or "")
    assert unpack(path, limit=2000)


def test_a_name_twice(room: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = zipped(room / "x.whl", (zipfile.ZipInfo("a.json"), b"1"), (zipfile.ZipInfo("a.json"), b"2"))
    with pytest.raises(ModelError, match="twice"):
        unpack(path)


@given(data=st.data())
def test_damage_is_told(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever bytes are changed or cut: the right files come out, or a ModelError."""
    room = tmp_path_factory.mktemp("damage")
    files = {"a.json": b'{"a": 1}' * 20, "b.txt": b"y" * 50}
    suffix = data.draw(st.sampled_from(["whl", "tgz"]))
    if suffix == "whl":
        path = zipped(room / "x.whl", *((zipfile.ZipInfo(name), each) for name, each in files.items()))
    else:
        path = tgz(room / "x.tgz", files)
    whole = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        del whole[at:]
    else:
        whole[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(whole)
    try:
        found = unpack(path)
    except ModelError:
        return
    assert set(found.values()) <= set(files.values()), "names and times are under no checksum in a zip"


def test_a_name_that_is_a_file_and_a_folder_is_refused(tmp_path: Path) -> None:
    for names in (("a", "a/b"), ("a/b", "a")):
        packed = tmp_path / "clash.whl"
        with zipfile.ZipFile(packed, "w") as archive:
            for name in names:
                archive.writestr(name, b"x")
        out = tmp_path / "-".join(names).replace("/", "_")
        out.mkdir()
        with open_archive(packed) as opened, pytest.raises(ModelError, match="the archive is refused"):
            opened.extract(list(opened.sizes), out)
