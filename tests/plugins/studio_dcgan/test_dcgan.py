"""The generators on a tiny model: classes, truncation, walks, steps shared by 64, and refusals."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import studio
import studio.testing
from studio.engine import Engine, Request
from studio.errors import InputError, ModelError, UnknownName, WeightsError
from studio.recipe import PluginRef, Recipe
from studio_dcgan.dcgan import DcganGenerator, DcganWalk
from studio_dcgan.model import GeneratorNet

PLUGIN = PluginRef(name="test", version="1")


def make(generator: studio.Generator, requests: list[dict[str, Any]]) -> list[studio.Media]:
    """Run requests, each with its seed, together."""
    with Engine("cpu") as engine:
        asked = []
        for one in requests:
            inputs = generator.Inputs.parse({name: value for name, value in one.items() if name != "seed"})
            asked.append(Request.of(generator, inputs, one["seed"], PLUGIN))
        return [ticket.result(500) for ticket in engine.submit_many(asked)]


def pixels(media: studio.Media) -> np.ndarray:
    samples = media.samples()
    assert samples is not None
    return samples.astype(int)


def test_conformance(tiny: Path) -> None:
    studio.testing.check(DcganWalk(tiny), {"frames": 150, "stops": 3}).raise_if_failed()


def test_64_requests_are_one_step(tiny: Path) -> None:
    generator = DcganGenerator(tiny)
    assert generator.max_batch == 64
    model = generator.load(studio.ModelRef(), "cpu", "float32")
    asked = [{"of": ("banana", "red apple", "")[i % 3], "truncation": 1 + i / 30} for i in range(64)]
    states = [generator.start(model, generator.Inputs.parse(one), studio.Rng(i)) for i, one in enumerate(asked)]
    assert len({generator.batch_key(state) for state in states}) == 1
    together = generator.step(model, states)
    assert all(state.done for state in together)
    for i in range(0, 64, 13):
        (alone,) = generator.step(model, [states[i]])
        assert (alone.pixels.int() - together[i].pixels.int()).abs().max() <= 1


def test_requests_share_steps_in_the_engine(tiny: Path) -> None:
    made = make(DcganGenerator(tiny), [{"seed": seed} for seed in range(24)])
    assert max(each.recipe.batch_width.max for each in made if isinstance(each.recipe, Recipe)) > 4


def test_classes(tiny: Path) -> None:
    same, other, spelt = make(
        DcganGenerator(tiny), [{"of": each, "seed": 1} for each in ("red apple", "kiwi", " Red Apple ")]
    )
    assert same == spelt
    assert same != other


def test_no_class_is_any_class(tiny: Path) -> None:
    generator = DcganGenerator(tiny)
    model = generator.load(studio.ModelRef(), "cpu", "float32")
    states = [generator.start(model, generator.Inputs(), studio.Rng(seed)) for seed in range(30)]
    drawn = {model.embedding.weight.tolist().index(state.x[0, model.latent :].tolist()) for state in states}
    assert drawn == {0, 1, 2}


def test_a_class_that_is_not_there(tiny: Path) -> None:
    with pytest.raises(UnknownName, match="no class of the model is called `bananna`") as caught:
        make(DcganGenerator(tiny), [{"of": "bananna", "seed": 1}])
    assert "did you mean `banana`?" in (caught.value.hint or "")
    with pytest.raises(UnknownName, match="`pear`"):
        make(DcganWalk(tiny), [{"of": ["kiwi", "pear"], "seed": 1}])


def test_a_model_without_classes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file(GeneratorNet(6, 8).state_dict(), tmp_path / "plain.safetensors")
    generator = DcganGenerator(tmp_path / "plain.safetensors")
    assert make(generator, [{"seed": 1}])[0] != make(generator, [{"seed": 2}])[0]
    with pytest.raises(InputError, match=r"`of` is `cat`, but the model has no classes"):
        make(generator, [{"of": "cat", "seed": 1}])
    make(DcganWalk(tmp_path / "plain.safetensors"), [{"seed": 1, "frames": 3}])


def test_truncation_makes_pictures_more_alike(tiny: Path) -> None:
    def spread(truncation: float) -> float:
        made = make(DcganGenerator(tiny), [{"of": "kiwi", "truncation": truncation, "seed": seed} for seed in range(8)])
        return float(np.std([pixels(each) for each in made], axis=0).mean())

    assert spread(0.1) < 0.5 * spread(1.0) < spread(4.0)


def test_a_walk_goes_from_picture_to_picture(tiny: Path) -> None:
    """Its ends are the pictures of the latents and classes that they stand for; in between nothing jumps."""
    generator = DcganWalk(tiny)
    model = generator.load(studio.ModelRef(), "cpu", "float32")
    inputs = generator.Inputs.parse({"of": ["banana", "Kiwi"], "stops": 3, "frames": 130})
    state = generator.start(model, inputs, studio.Rng(5))
    assert state.steps == 3
    ends = torch.stack([state.x[0], state.x[-1]])
    assert torch.equal(ends[:, 7:], model.embedding.weight[[0, 0]])  # banana, Kiwi, banana
    while not state.done:
        (state,) = generator.step(model, [state])
    assert state.pixels.shape == (130, 64, 64, 3)
    assert (state.pixels[[0, -1]].int() - model.pixels(ends).int()).abs().max() <= 1
    frames = state.pixels.float()
    assert (frames[1:] - frames[:-1]).abs().mean((1, 2, 3)).max() < 0.2 * (frames[0] - frames[65]).abs().mean()
    video = generator.finish(model, state)
    assert (len(video.frames), video.fps) == (130, 24)


def test_another_model(tiny: Path, tmp_path: Path) -> None:
    copy = tmp_path / "other.safetensors"
    shutil.copy(tiny, copy)
    generator = DcganGenerator(tmp_path / "not there")
    (made,) = make(generator, [{"of": "kiwi", "model": str(copy), "seed": 3}])
    assert made == make(DcganGenerator(tiny), [{"of": "kiwi", "seed": 3}])[0]
    assert isinstance(made.recipe, Recipe)
    with pytest.raises(WeightsError, match="does not exist"):
        generator.weights(studio.ModelRef())


@pytest.mark.parametrize("name", ["weights.pth", "weights.tar", "weights.pkl"])
def test_pickles_are_refused_with_the_remedy(tiny: Path, tmp_path: Path, name: str) -> None:
    torch.save({"netG_state_dict": GeneratorNet(7, 8).state_dict()}, tmp_path / name)
    with pytest.raises(ModelError, match=r"is refused: a .* file may be a pickle") as caught:
        make(DcganGenerator(tiny), [{"model": str(tmp_path / name), "seed": 1}])
    assert f"studio models pull --convert file:{tmp_path / name}" in (caught.value.hint or "")


def test_a_pickle_under_another_name(tiny: Path, tmp_path: Path) -> None:
    torch.save({"netG_state_dict": GeneratorNet(7, 8).state_dict()}, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match="cannot be read as safetensors"):
        make(DcganGenerator(tiny), [{"model": str(tmp_path / "a.safetensors"), "seed": 1}])
