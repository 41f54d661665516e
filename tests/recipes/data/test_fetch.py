"""Packages are fetched with their clients, checked, unpacked once; every refusal names what and says what to do."""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from recipes.data import fetch
from recipes.data.fetch import Package
from studio.errors import StudioError

TEXT = b"a red apple\n"


def archive(path: Path) -> None:
    if path.suffix == ".tgz":
        with tarfile.open(path, "w:gz") as tar:
            entry = tarfile.TarInfo("package/data.txt")
            entry.size = len(TEXT)
            tar.addfile(entry, io.BytesIO(TEXT))
    elif path.suffix == ".whl":
        with zipfile.ZipFile(path, "w") as wheel:
            wheel.writestr("package/data.txt", TEXT)
    else:
        tree = path.parent / "tree"
        (tree / "DEBIAN").mkdir(parents=True)
        (tree / "package").mkdir()
        (tree / "package" / "data.txt").write_bytes(TEXT)
        control = "Package: fruit\nVersion: 1:2\nArchitecture: all\nMaintainer: a <a@example.org>\nDescription: fruit\n"
        (tree / "DEBIAN" / "control").write_text(control)
        subprocess.run(["dpkg-deb", "--build", str(tree), str(path)], check=True, capture_output=True)
        shutil.rmtree(tree)


def package(cache: Path, client: str) -> Package:
    """A package whose file lies in the cache already, as after a download."""
    cache.mkdir(exist_ok=True)
    file = {"npm": "fruit-2.0.0.tgz", "pip": "fruit-2.0.0-py3-none-any.whl", "apt": "fruit_1%3a2_all.deb"}[client]
    archive(cache / file)
    return Package(client, "fruit", "2.0.0", file, hashlib.sha256((cache / file).read_bytes()).hexdigest(), "MIT")


needs_dpkg = pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="there is no dpkg-deb here")


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("client", ["npm", "pip", pytest.param("apt", marks=needs_dpkg)])
def test_unpacks_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: str, relative: bool) -> None:
    """A relative cache too, as the default `--work training` gives."""
    monkeypatch.chdir(tmp_path)
    cache = Path("cache") if relative else tmp_path / "cache"
    fruit = package(cache, client)
    folder = fetch.fetch(fruit, cache)
    assert (folder / "package" / "data.txt").read_bytes() == TEXT
    assert sorted(path.name for path in cache.iterdir()) == sorted([fruit.file, folder.name])
    assert "%" not in folder.name
    (cache / fruit.file).unlink()
    assert fetch.fetch(fruit, cache) == folder, "what is unpacked needs no file"


def test_what_an_unpacking_left_halfway_is_made_anew(tmp_path: Path) -> None:
    fruit = package(tmp_path, "npm")
    half = tmp_path / ".studio.0123456789ab.tmp"
    half.mkdir()
    (half / "old.txt").touch()
    assert [path.name for path in fetch.fetch(fruit, tmp_path).iterdir()] == ["package"]
    assert not half.exists()


def test_another_file_than_the_pinned_is_refused(tmp_path: Path) -> None:
    fruit = replace(package(tmp_path, "npm"), sha256="0" * 64)
    found = hashlib.sha256((tmp_path / fruit.file).read_bytes()).hexdigest()
    with pytest.raises(StudioError, match=f"has sha256 {found}, not {'0' * 64}") as caught:
        fetch.fetch(fruit, tmp_path)
    assert fruit.file in caught.value.message
    assert caught.value.hint == "remove the file and fetch again"
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [], "nothing is unpacked"


@pytest.mark.parametrize(("wanted", "client"), [(fetch.EMOJI, "npm"), (fetch.WORDNET, "apt-get")])
def test_a_missing_client_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: Package, client: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StudioError, match=f"`{client}` is not installed") as caught:
        fetch.fetch(wanted, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    assert wanted.name in caught.value.message
    assert wanted.file in (caught.value.hint or "")
    assert str(tmp_path / "cache") in (caught.value.hint or "")


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, client: str, script: str) -> None:
    """Put a program in the place of a registry's client: tests reach no network."""
    folder.mkdir()
    (folder / client).write_text(f"#!/bin/sh\n{script}\n")
    (folder / client).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_downloads_with_the_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fruit = package(tmp_path, "npm")
    away = (tmp_path / fruit.file).rename(tmp_path / "away.tgz")
    script = f'[ "$1 $2" = "pack fruit@2.0.0" ] && for into; do :; done && cp {away} "$into/{fruit.file}"'
    stand_in(tmp_path / "bin", monkeypatch, "npm", script)
    folder = fetch.fetch(fruit, tmp_path / "cache")
    assert (folder / "package" / "data.txt").read_bytes() == TEXT
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == sorted([fruit.file, folder.name])


@pytest.mark.parametrize(("wanted", "client", "due"), [(fetch.WORDNET, "apt-get", True), (fetch.EMOJI, "npm", False)])
def test_a_client_that_fails_is_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: Package, client: str, due: bool
) -> None:
    stand_in(tmp_path / "bin", monkeypatch, client, "echo first >&2; echo 'E: no such version' >&2; exit 100")
    with pytest.raises(StudioError, match=r"failed: E: no such version") as caught:
        fetch.fetch(wanted, tmp_path / "cache")
    assert f"{wanted.name}" in caught.value.message
    assert ("`apt-get update` may be due" in (caught.value.hint or "")) == due


def test_a_client_that_leaves_no_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path / "bin", monkeypatch, "npm", "exit 0")
    with pytest.raises(StudioError, match=f"`npm` left 0 files of `{fetch.EMOJI.name}`"):
        fetch.fetch(fetch.EMOJI, tmp_path / "cache")
    monkeypatch.undo()
    stand_in(tmp_path / "apt", monkeypatch, "apt-get", "touch other.deb")
    with pytest.raises(StudioError, match="came as another file than"):
        fetch.fetch(fetch.WORDNET, tmp_path / "cache")
