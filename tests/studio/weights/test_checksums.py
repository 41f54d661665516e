"""A file of checksums as `sha256sum` writes it, and weights that are checked against it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from studio.errors import WeightsError
from studio.weights import checksums


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("vae/a.safetensors", "b.safetensors", "config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode() * 100)
    checksums.write(tmp_path)
    return tmp_path


def test_weights_are_listed_and_found_right(folder: Path) -> None:
    listed = [line.split("  ")[1] for line in (folder / checksums.SUMS).read_text().splitlines()]
    assert listed == ["b.safetensors", "vae/a.safetensors"]
    assert list(checksums.hash_weights([folder / "vae" / "a.safetensors"])) == ["vae/a.safetensors"]
    (folder / "b.safetensors").write_bytes(b"other")
    with pytest.raises(WeightsError, match=r"b\.safetensors` are damaged"):
        checksums.hash_weights([folder / "b.safetensors"])


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="coreutils are not installed")
def test_sha256sum_says_the_same(folder: Path) -> None:
    ran = subprocess.run(["sha256sum", "-c", checksums.SUMS], cwd=folder, capture_output=True, text=True, check=True)
    assert ran.stdout == "b.safetensors: OK\nvae/a.safetensors: OK\n"


@pytest.mark.parametrize(("packaged", "hint"), [(True, "reinstall the package"), (False, "download the model again")])
def test_the_remedy_depends_on_whose_the_file_is(folder: Path, packaged: bool, hint: str) -> None:
    if packaged:
        (folder / "__init__.py").touch()
    (folder / "vae" / "a.safetensors").write_bytes(b"other")
    with pytest.raises(WeightsError) as caught:
        checksums.hash_weights([folder / "vae" / "a.safetensors"])
    assert hint in (caught.value.hint or "")
    with pytest.raises(WeightsError, match="cannot be read") as caught:
        checksums.sha256_once(folder / "gone.safetensors")
    assert hint in (caught.value.hint or "")
