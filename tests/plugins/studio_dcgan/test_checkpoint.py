"""DCGANs on disk: there and back, the tutorial's layout, and what is refused before anything is built."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from studio.errors import WeightsError
from studio_dcgan import checkpoint
from studio_dcgan.model import GeneratorNet

from .conftest import CLASSES


def test_there_and_back(tiny: Path) -> None:
    found = checkpoint.find(tiny)
    assert (found.latent, found.width, found.classes, found.embedded, found.names) == (7, 8, 3, 5, CLASSES)
    built = found.build("cpu", "float32")
    assert not built.training
    stored = safetensors.torch.load_file(tiny)
    assert stored["main.0.weight"].dtype == torch.float16
    assert all(torch.equal(each, stored[name].to(each)) for name, each in built.state_dict().items())
    assert checkpoint.find(tiny.parent).path == tiny  # a folder's model.safetensors


@pytest.mark.parametrize("prefix", ["", "netG_state_dict.", "netG.", "netG_state_dict.module."])
def test_the_tutorials_names(tmp_path: Path, prefix: str) -> None:
    torch.manual_seed(0)
    generator = GeneratorNet(9, 8)
    tensors = {f"{prefix}{name}": each for name, each in generator.state_dict().items()}
    tensors["netD_state_dict.main.0.weight"] = torch.zeros(8, 3, 4, 4)
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors")
    found = checkpoint.find(tmp_path / "a.safetensors")
    assert found.names == ()
    z = torch.randn(2, 9)
    assert torch.equal(found.build("cpu", "float32")(z), generator.eval()(z))


def wider(tensors: dict[str, Tensor]) -> None:
    tensors["main.3.weight"] = torch.zeros(64, 40, 4, 4)


def larger(tensors: dict[str, Tensor]) -> None:
    tensors["main.15.weight"] = torch.zeros(3, 3, 4, 4)


def grey(tensors: dict[str, Tensor]) -> None:
    tensors["main.12.weight"] = tensors["main.12.weight"][:, :1]


def not_a_number(tensors: dict[str, Tensor]) -> None:
    tensors["main.6.weight"][0, 0, 0, 0] = float("nan")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda tensors: tensors.pop("main.0.weight"), r"is not a 64x64.*`main.0.weight` is missing"),
        (lambda tensors: tensors.pop("main.4.bias"), r"lack `main.4.bias`"),
        (lambda tensors: tensors.clear(), "is not a 64x64"),
        (wider, r"`main.3.weight` of .* has the shape \[64, 40, 4, 4\]"),
        (larger, r"is not a 64x64.*the last layer \[15\]"),
        (grey, r"is not a 64x64.*`main.12.weight` \[8, 1, 4, 4\]"),
        (not_a_number, r"`main.6.weight` of .* has values that are not finite"),
    ],
)
def test_other_shapes(tiny: Path, tmp_path: Path, spoil: Callable[[dict[str, Tensor]], object], reason: str) -> None:
    tensors = {name: each.clone() for name, each in safetensors.torch.load_file(tiny).items()}
    spoil(tensors)
    safetensors.torch.save_file({name: each.contiguous() for name, each in tensors.items()}, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=reason) as caught:
        checkpoint.find(tmp_path / "a.safetensors").build("cpu", "float32")
    assert caught.value.hint


@pytest.mark.parametrize("names", ['["a"]', "[1, 2, 3]", "{", '"abc"'])
def test_names_that_do_not_fit(tiny: Path, tmp_path: Path, names: str) -> None:
    safetensors.torch.save_file(safetensors.torch.load_file(tiny), tmp_path / "a.safetensors", {"classes": names})
    with pytest.raises(WeightsError, match="3 classes, but its metadata does not have 3 names"):
        checkpoint.find(tmp_path / "a.safetensors")


@pytest.mark.parametrize("cut", [0, 7, 100, -1])
def test_cut_short(tiny: Path, tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(tiny.read_bytes()[:cut])
    with pytest.raises(WeightsError, match="cannot be read as safetensors") as caught:
        checkpoint.find(path)
    assert "--convert" in (caught.value.hint or "")


def test_not_there(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="does not exist"):
        checkpoint.find(tmp_path / "a.safetensors")


def test_names_are_counted() -> None:
    with pytest.raises(ValueError, match="1 names for 3 classes"):
        checkpoint.save(GeneratorNet(7, 8, 3), Path("never"), ["a"])
