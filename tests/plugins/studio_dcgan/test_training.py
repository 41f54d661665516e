"""Training on a few pictures: each network learns from its own loss, a stopped run ends at the same weights, grids."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import safetensors.torch
import torch
from rich.console import Console
from torch import nn

from studio.errors import StudioError
from studio.training.ema import Ema
from studio_dcgan import checkpoint, train
from studio_dcgan.model import GeneratorNet
from studio_dcgan.trainer import TrainDcgan

CPU = torch.device("cpu")


def pictures(count: int = 4) -> np.ndarray:
    """Even squares of one colour each."""
    colours = np.random.default_rng(0).integers(0, 256, (count, 1, 1, 3), np.uint8)
    return np.broadcast_to(colours, (count, 64, 64, 3)).copy()


def trained(folder: Path, steps: int, labels: list[str] | None = None, **more: Any) -> tuple[GeneratorNet, Any]:
    labels = labels or ["red", "blue", "red", "green"]
    return train.train(pictures(), labels, folder, device=CPU, steps=steps, minutes=60, batch=4, width=8, **more)


def test_a_run_that_was_stopped_ends_at_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the second of four steps, and the same command again, against a run that nobody stopped."""
    whole, names = trained(tmp_path / "whole", 4)
    assert names == ("red", "blue", "green")
    update = Ema.update

    def interrupted(self: Ema, model: nn.Module) -> None:
        update(self, model)
        if self.updates == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Ema, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "broken", 4)
    again, _ = trained(tmp_path / "broken", 4, grid_every=3)
    for name, each in whole.state_dict().items():
        assert torch.equal(each, again.state_dict()[name]), name
    assert [each.name for each in (tmp_path / "broken").glob("samples-*.png")] == ["samples-0000003.png"]
    with PIL.Image.open(tmp_path / "broken" / "samples-0000003.png") as grid:
        assert grid.size == (512, 512)


def check_steps(path: Path, steps: int) -> None:
    """The checkpoint is of that many steps, each of which every parameter took, and everything in it is finite."""
    with safetensors.safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["counters"])["step"] == steps
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    taken = {float(v) for k, v in tensors.items() if k.startswith("optimizer.") and k.endswith(".step")}
    assert taken == {float(steps)}
    assert all(each.isfinite().all() for each in tensors.values() if each.is_floating_point())


def test_both_networks_take_each_step(tmp_path: Path) -> None:
    trained(tmp_path, 3)
    check_steps(tmp_path / "run.safetensors", 3)


def test_the_discriminators_weights_have_no_part_in_the_generators_step(tmp_path: Path, monkeypatch: Any) -> None:
    """With the generator's loss alone the discriminator stays as it was, and the other way round."""
    seen: list[set[str]] = []
    step = torch.optim.Adam.step

    def spy(self: torch.optim.Adam, *arguments: Any) -> Any:
        group = self.param_groups[0]["params"]
        seen.append({index for index, each in enumerate(group) if each.grad is not None})  # type: ignore[misc]
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    trained(tmp_path, 2)
    first, second, third, fourth = seen
    assert first == third
    assert second == fourth
    assert not first & second


def test_without_classes(tmp_path: Path) -> None:
    generator, names = trained(tmp_path, 1, ["", "", "", ""])
    assert names == ()
    assert generator.classes == 0


def test_settled_batch_norms_know_their_own_pictures() -> None:
    """In evaluation, what comes out of every batch norm has about mean 0 and deviation 1 times its gain and bias."""
    torch.manual_seed(0)
    generator = GeneratorNet(7, 8, 3, 5)
    made = train.calibrated(generator, batches=20, batch=32)
    assert generator.training
    assert not made.training
    seen: dict[nn.Module, torch.Tensor] = {}
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda module, _, out: seen.__setitem__(module, out.clone()))
    with torch.no_grad():
        made(torch.randn(64, 7), torch.randint(3, (64,)))
    assert len(seen) == 4
    for norm, out in seen.items():
        assert isinstance(norm, nn.BatchNorm2d)
        out = (out - norm.bias[:, None, None]) / norm.weight[:, None, None]
        assert out.mean((0, 2, 3)).abs().max() < 0.6
        assert (out.std((0, 2, 3)) - 1).abs().max() < 0.5


def test_pictures_are_mirrored_at_times_and_keep_their_rows() -> None:
    given = np.zeros((3, 64, 64, 3), np.uint8)
    given[..., 0] = np.arange(64)
    given[..., 1] = np.arange(3)[:, None, None] * 100
    x, rows = train.draw(given, 40, torch.Generator().manual_seed(0))
    pixels = ((x + 1) * 127.5).round()
    assert torch.equal(pixels[:, 1, 0, 0], rows * 100.0)
    mirrored = pixels[:, 0, 0, 0] == 63
    assert 5 < mirrored.sum() < 35
    assert torch.equal(pixels[~mirrored, 0, 5], torch.arange(64.0).expand(int((~mirrored).sum()), 64))


@pytest.mark.slow
def test_classes_are_learnt(tmp_path: Path) -> None:
    """Day is light above and dark below, night the other way round."""
    day = np.full((64, 64, 3), 40, np.uint8)
    day[:32] = 215
    generator, names = train.train(np.stack([day, day[::-1]]), ["day", "night"], tmp_path, device=CPU, steps=200,
                                   minutes=60, batch=8, width=8, rate=2e-3, decay=0.98)  # fmt: skip
    assert names == ("day", "night")
    z = torch.randn(40, generator.latent, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        made = generator(z, torch.arange(40) % 2)
    lighter = made[:, :, :32].mean((1, 2, 3)) > made[:, :, 32:].mean((1, 2, 3))
    assert lighter[::2].float().mean() > 0.9
    assert lighter[1::2].float().mean() < 0.1


def photos(folder: Path) -> Path:
    """Two pictures each of two classes, none of them square."""
    for name, picture in zip("abcd", pictures(), strict=True):
        (folder / ("warm" if name in "ab" else "cold")).mkdir(parents=True, exist_ok=True)
        file = folder / ("warm" if name in "ab" else "cold") / f"{name}.jpg"
        PIL.Image.fromarray(picture).resize((50, 90)).save(file)
    return folder


def test_the_recipe_on_a_folder_of_pictures(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = photos(tmp_path / "photos")

    def recipe(width: int) -> None:
        given = {"work": str(tmp_path), "data": str(folder), "device": "cpu", "steps": 1, "batch": 2, "width": width}
        TrainDcgan().run(TrainDcgan.Options.parse(given), Console(stderr=True))

    recipe(8)
    assert "the model is in" in capfd.readouterr().err
    found = checkpoint.find(tmp_path / "dcgan" / "model.safetensors")
    assert (found.names, found.width) == (("cold", "warm"), 8)
    with pytest.raises(StudioError, match="has other settings: `width` was 8, now 16"):
        recipe(16)
    (folder / "warm").rename(folder / "hot")
    model = (tmp_path / "dcgan" / "model.safetensors").read_bytes()
    with pytest.raises(StudioError, match=r"`labels` was \['cold', 'warm'\], now \['cold', 'hot'\]; `data` differs"):
        recipe(8)
    assert (tmp_path / "dcgan" / "model.safetensors").read_bytes() == model
    (folder / "hot").rename(folder / "warm")
    (folder / "warm" / "a.jpg").write_bytes(b"GIF89a")
    with pytest.raises(StudioError, match=r"a\.jpg"):
        recipe(8)


@pytest.mark.slow
def test_two_processes_share_a_run(tmp_path: Path) -> None:
    """They end together, at finite weights that every step moved, and one of them writes the files."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    program = str(Path(__file__).with_name("shared.py"))
    command = [*launch, program, str(tmp_path), str(photos(tmp_path / "photos"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    check_steps(tmp_path / "dcgan" / "run.safetensors", 3)
    assert (tmp_path / "dcgan" / "samples-0000002.png").exists()
    assert checkpoint.find(tmp_path / "dcgan" / "model.safetensors").names == ("cold", "warm")
