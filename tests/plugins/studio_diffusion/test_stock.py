"""`image --model`: pipelines of diffusers draw what they draw by themselves; what they do not take is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

import studio
from studio.engine import Engine, Request
from studio.errors import InputError
from studio.recipe import PluginRef
from studio.testing.gpu import runs_on_a_gpu
from studio.testing.subject import Subject
from studio_diffusion.image import ImageGenerator

from ...studio.diffusion import whole

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:diffusers")
SD, XL, FLUX = "StableDiffusionPipeline", "StableDiffusionXLPipeline", "FluxPipeline"
SMALL: dict[str, Any] = {"prompt": "a red boat", "steps": 3, "size": "64x64"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: whole.save(name, tmp_path_factory.mktemp(name)) for name in (SD, XL, FLUX)}


@pytest.fixture(scope="module")
def pipes(folders: dict[str, Path]) -> dict[str, Any]:
    made = {name: whole.diffusers.DiffusionPipeline.from_pretrained(folder) for name, folder in folders.items()}
    for pipe in made.values():
        pipe.set_progress_bar_config(disable=True)
    return made


def drawn(folder: Path, *requests: dict[str, Any]) -> list[tuple[Any, tuple[str, ...]]]:
    """The pictures of requests with seeds 3, 4 …, made together, and their notices."""
    generator = ImageGenerator(folder)
    with Engine("cpu", "float32") as engine:
        inputs = [generator.Inputs.parse({"model": str(folder), **SMALL, **each}) for each in requests]
        tickets = [
            engine.submit(Request.of(generator, each, 3 + i, PluginRef(name="test", version="1")))
            for i, each in enumerate(inputs)
        ]
        return [(ticket.result(300), ticket.result(300).recipe.notices) for ticket in tickets]


def by_itself(pipe: Any, seed: int = 3, **more: Any) -> np.ndarray:
    asked = {"prompt": "a red boat", "num_inference_steps": 3, "width": 64, "height": 64, **more}
    return np.asarray(pipe(**asked, generator=torch.Generator().manual_seed(seed)).images[0]).astype(int)


def far(picture: Any, other: np.ndarray) -> int:
    return int(np.abs(picture.samples().astype(int) - other).max())


@pytest.mark.parametrize("name", [SD, XL, FLUX])
def test_pictures_made_together_are_those_of_the_pipeline(
    folders: dict[str, Path], pipes: dict[str, Any], name: str
) -> None:
    (one, _), (two, _) = drawn(folders[name], {}, {"steps": 2, "guidance": 3})
    assert far(one, by_itself(pipes[name])) <= 2
    assert far(two, by_itself(pipes[name], 4, num_inference_steps=2, guidance_scale=3)) <= 2
    assert one.samples().std() > 1


def test_a_negative_prompt_and_another_sampler(folders: dict[str, Path], pipes: dict[str, Any]) -> None:
    ((made, _),) = drawn(folders[SD], {"negative": "a cat", "sampler": "euler-a"})
    own = pipes[SD].scheduler
    pipes[SD].scheduler = whole.diffusers.EulerAncestralDiscreteScheduler.from_config(own.config)
    try:
        assert far(made, by_itself(pipes[SD], negative_prompt="a cat")) <= 2
    finally:
        pipes[SD].scheduler = own


@pytest.mark.parametrize("name", [SD, FLUX])
def test_a_picture_selects_the_image_to_image_pipeline(
    folders: dict[str, Path], pipes: dict[str, Any], name: str
) -> None:
    pixels = np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8)
    ((made, _),) = drawn(folders[name], {"image": studio.Image.from_array(pixels), "strength": 0.7})
    kind = "StableDiffusionImg2ImgPipeline" if name == SD else "FluxImg2ImgPipeline"
    other = getattr(whole.diffusers, kind)(**pipes[name].components)
    other.set_progress_bar_config(disable=True)
    size = {} if name == SD else {"width": 64, "height": 64}
    asked = {"prompt": "a red boat", "num_inference_steps": 3, "strength": 0.7, **size}
    stock = other(**asked, image=PIL.Image.fromarray(pixels), generator=torch.Generator().manual_seed(3)).images[0]
    assert far(made, np.asarray(stock).astype(int)) <= 2


def test_what_is_kept_is_kept_exactly(folders: dict[str, Path]) -> None:
    pixels = np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8)
    ((made, _),) = drawn(folders[SD], {"image": studio.Image.from_array(pixels), "box": "0,0,32,64"})
    assert np.array_equal(made.samples()[:, 32:], pixels[:, 32:])
    assert not np.array_equal(made.samples()[:, :32], pixels[:, :32])


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"fast": True, "steps": None}, "`fast` is only for Studio's own models"),
        ({"cache": True}, "`cache` is only for Studio's own models"),
        ({"size": "66x64"}, "rejects the request: .*divisible by 8"),
        ({"sampler": "flow-euler"}, "does not fit this model"),
        ({"clip_skip": 3}, "this model has 2 layers that can be skipped"),
        ({"image": "grey", "strength": 0.3}, "`strength` is 0.3 of 3 steps"),
        ({"sampler": "eular"}, "known for this model: `ddim`"),
    ],
)
def test_what_the_pipeline_does_not_take_is_refused(
    folders: dict[str, Path], inputs: dict[str, Any], words: str
) -> None:
    if "image" in inputs:
        inputs = {**inputs, "image": studio.Image.from_array(np.full((64, 64, 3), 128, np.uint8))}
    with pytest.raises(InputError, match=words):
        drawn(folders[SD], inputs)


@pytest.mark.parametrize("name", [SD, pytest.param(FLUX, marks=pytest.mark.slow)])
def test_on_a_gpu_requests_share_launches(folders: dict[str, Path], name: str) -> None:
    """On the fake one: the same bytes. Waits in a step are those of diffusers' schedulers."""
    subject = Subject(ImageGenerator(folders[name]), {**SMALL, "model": str(folders[name])}, "cpu", "float32")
    finding = runs_on_a_gpu(subject, 0.0)
    assert finding.status == "passed"
    assert finding.numbers["apart"] == 0
    assert finding.numbers["width"] == 8
    assert finding.numbers["launches_wide"] < 1.1 * finding.numbers["launches"]


def test_weights_in_a_prompt_are_said_to_be_ignored(folders: dict[str, Path]) -> None:
    ((weighted, notices),) = drawn(folders[FLUX], {"prompt": "a (red:1.4) boat"})
    ((plain, none),) = drawn(folders[FLUX], {"prompt": "a red boat"})
    assert np.array_equal(weighted.samples(), plain.samples())
    assert [notice for notice in notices if "are ignored" in notice]
    assert not none


@pytest.mark.parametrize("name", [SD, XL, FLUX])
def test_a_picture_without_a_size_keeps_its_own(folders: dict[str, Path], name: str) -> None:
    picture = studio.Image.from_array(np.full((43, 61, 3), 128, np.uint8))
    more = [{"mask": picture}] if name != FLUX else []
    made = drawn(folders[name], *[{"image": picture, "size": "", "steps": 6, **each} for each in ({}, *more)])
    assert {each.samples().shape for each, _ in made} == {(40, 56, 3)}


def test_layers_of_the_text_encoder_are_skipped(folders: dict[str, Path]) -> None:
    (one, _), (all_, _) = drawn(folders[SD], {"clip_skip": 1}, {})
    assert not np.array_equal(one.samples(), all_.samples())


def test_a_negative_prompt_that_changes_nothing_is_said(folders: dict[str, Path]) -> None:
    ((_, notices),) = drawn(folders[FLUX], {"negative": "a cat"})
    assert [notice for notice in notices if "has no effect" in notice]


def test_a_model_of_clips_is_refused_before_it_runs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a `WanPipeline`, which makes clips"):
        drawn(whole.save("WanPipeline", tmp_path), {})
