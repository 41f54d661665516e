"""What the DDPM's trainer sees and minimises, that a stopped run ends as an unbroken one, and the way from a folder."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from studio.cli.main import run
from studio.devices import torch_setup
from studio.errors import StudioError

torch_setup.prepare()

from studio.diffusion.noise import NoiseSchedule, config  # noqa: E402
from studio_diffusion import train_pixel  # noqa: E402  (needs prepare)
from studio_diffusion.pixel import PixelDiffusion  # noqa: E402

CPU = torch.device("cpu")
PICTURES = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
LABELS = ["pear", "apple", "pear"]


@given(seed=st.integers(0, 99), drop=st.sampled_from([0.0, 0.5, 1.0]))
def test_a_batch_is_of_pictures_and_their_labels(seed: int, drop: float) -> None:
    """Each row is a picture or its mirror image, with its own label or none."""
    pictures, labels = torch.from_numpy(PICTURES).permute(0, 3, 1, 2), torch.tensor([4, 5, 6])
    x0, told = train_pixel.draw(pictures, labels, 64, 9, drop, torch.Generator().manual_seed(seed))
    assert x0.dtype == torch.float32
    bytes_ = ((x0 + 1) * 127.5).round().byte()
    for row, label in zip(bytes_, told.tolist(), strict=True):
        (which,) = [i for i in range(3) if (row == pictures[i]).all() or (row == pictures[i].flip(2)).all()]
        assert label in (4 + which, 9)
    assert {0.0: (told == 9).sum() == 0, 0.5: 10 < (told == 9).sum() < 54, 1.0: (told == 9).all()}[drop]
    assert 10 < sum(any((row == each).all() for each in pictures) for row in bytes_) < 54


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
def test_the_loss_is_least_where_the_net_is_right(prediction: str) -> None:
    schedule = NoiseSchedule(config("cosine", prediction))
    rng = torch.Generator().manual_seed(0)
    x0, e = (torch.randn(4, 3, 8, 8, generator=rng) for _ in range(2))
    t = torch.tensor([10, 300, 600, 990])

    def loss(off: float) -> float:
        def net(x: Tensor, t: Tensor, labels: Any) -> Any:
            return SimpleNamespace(sample=schedule.target(x0, e, schedule.level(t)) + off)

        return float(train_pixel.loss_of(net, schedule, x0, None, t, e, 5.0))  # type: ignore[arg-type]

    assert loss(0) == 0
    at = schedule.level(t)
    assert loss(0.1) == pytest.approx(0.01 * float(schedule.weight(at, 5.0).mean()), rel=1e-3)
    assert loss(0.2) == pytest.approx(4 * loss(0.1), rel=1e-3)


class Stopping(NoiseSchedule):
    """Asks the run to stop in its second step, as Ctrl-C does."""

    asked = 0

    def target(self, *given: Any) -> Tensor:
        self.asked += 1
        if self.asked == 2:
            signal.raise_signal(signal.SIGINT)
        return super().target(*given)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A net of fewer channels, drawn in fewer steps."""
    monkeypatch.setattr(train_pixel, "build", partial(train_pixel.build, channels=(16, 16, 32, 32)))
    monkeypatch.setattr(train_pixel, "GRID_STEPS", 2)


def train(folder: Path, schedule: NoiseSchedule, labels: list[str] = LABELS, steps: int = 3) -> dict[str, Tensor]:
    model, names = train_pixel.train(
        PICTURES, labels, schedule, folder, device=CPU, steps=steps, minutes=60, batch=2, grid_every=10
    )
    assert names == sorted(set(labels) - {""})
    return model.state_dict()


@pytest.mark.usefixtures("small")
def test_a_stopped_run_ends_at_the_same_weights(tmp_path: Path) -> None:
    stock = config("cosine", "v")
    whole = train(tmp_path / "whole", NoiseSchedule(stock))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", Stopping(stock))
    stopped = train(tmp_path / "stopped", NoiseSchedule(stock))
    assert all(torch.equal(value, stopped[name]) for name, value in whole.items())
    with pytest.raises(StudioError, match=r"other settings: `schedule` differs"):
        train(tmp_path / "whole", NoiseSchedule(config("cosine", "x0")))
    with pytest.raises(StudioError, match=r"`labels` was \['apple', 'pear'\], now \['apple', 'fig'\]"):
        train(tmp_path / "whole", NoiseSchedule(stock), ["fig", "apple", "fig"])


@pytest.mark.usefixtures("small")
def test_other_pictures_are_refused_and_another_batch_or_rate_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schedule = NoiseSchedule(config("cosine", "v"))
    train(tmp_path, schedule, steps=1)
    given = {"device": CPU, "minutes": 60.0, "grid_every": 10}
    with pytest.raises(StudioError, match="`data` differs"):
        train_pixel.train(255 - PICTURES, LABELS, schedule, tmp_path, steps=2, batch=2, **given)
    train_pixel.train(PICTURES, LABELS, schedule, tmp_path, steps=2, batch=3, peak=1e-4, **given)
    said = capsys.readouterr().err
    assert "changed: `batch` was 2, now 3" in said
    assert "`rate` was 0.0006, now 0.0001" in said


@pytest.mark.usefixtures("small")
def test_a_loss_that_is_not_a_number_leaves_the_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    data.mkdir()
    PIL.Image.new("RGB", (16, 16), "red").save(data / "a.png")
    work = ["--work", str(tmp_path), "--data", str(data), "--batch", "2", "--size", "16"]
    assert run(["train", "ddpm", *work, "--steps", "1"]) == 0, capfd.readouterr().err
    model = {path: path.read_bytes() for path in (tmp_path / "ddpm").rglob("*.safetensors")}
    broken = torch.no_grad()(lambda *_: torch.full((), float("nan"), requires_grad=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_pixel, "loss_of", lambda *given: broken() * 1)
        assert run(["train", "ddpm", *work, "--steps", "3"]) == 1
    assert "error: `loss` is nan at step 1; training stopped" in capfd.readouterr().err
    assert {path: path.read_bytes() for path in (tmp_path / "ddpm").rglob("*.safetensors")} == model


@pytest.mark.usefixtures("small")
def test_pictures_without_labels(tmp_path: Path) -> None:
    weights = train(tmp_path, NoiseSchedule(config("linear", "epsilon")), ["", "", ""], steps=1)
    assert not any("class_embedding" in name for name in weights)


def test_from_a_folder_to_a_picture(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for index, name in enumerate(("red", "blue", "green")):
        (tmp_path / "data" / name).mkdir(parents=True)
        PIL.Image.new("RGB", (20 + index, 16), name).save(tmp_path / "data" / name / "one.png")
    work = ["--work", str(tmp_path / "work"), "--data", str(tmp_path / "data"), "--steps", "1", "--batch", "2"]
    more = ["--size", "16", "--prediction", "epsilon", "--schedule", "linear"]
    assert run(["train", "ddpm", *work, *more]) == 0, capfd.readouterr().err
    folder = tmp_path / "work" / "ddpm" / "model"
    given = ["--model", str(folder), "--of", "blue", "--steps", "2", "-o", str(tmp_path / "made.png")]
    assert run(["generate", "ddpm", *given]) == 0, capfd.readouterr().err
    with PIL.Image.open(tmp_path / "made.png") as picture:
        assert picture.size == (16, 16)
    assert run(["train", "ddpm", *work, "--size", "24"]) == 1
    assert "`size` was 16, now 24" in capfd.readouterr().err
    assert run(["train", "ddpm", "--work", str(tmp_path / "none")]) == 2
    assert "`data` is missing: a folder of pictures" in capfd.readouterr().err


def test_the_grid_has_a_picture_for_each_place(tmp_path: Path, tiny_ddpm: Path) -> None:
    train_pixel.save_grid(PixelDiffusion.load(tiny_ddpm, "cpu", torch.float32), tmp_path)
    with PIL.Image.open(tmp_path / "samples.png") as grid:
        assert grid.size == (8 * 16, 4 * 16)
        tiles = np.asarray(grid).reshape(4, 16, 8, 16, 3).transpose(0, 2, 1, 3, 4).reshape(32, -1)
    assert len({tile.tobytes() for tile in tiles}) == 32
