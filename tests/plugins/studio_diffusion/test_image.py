"""The generator `image` on a tiny real folder: against the stock pipeline, batched against alone, and its refusals."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import studio
from studio.diffusion.guidance import rescaled
from studio.engine import Engine, Request
from studio.errors import GeneratorFailed, InputError, WeightsError
from studio.recipe import PluginRef, Recipe
from studio_diffusion.image import STARTER, ImageGenerator

PLUGIN = PluginRef(name="test", version="1")


def pixels(image: studio.Media) -> np.ndarray:
    assert isinstance(image, studio.Image)
    return np.asarray(image.pil).astype(int)


@pytest.fixture(scope="module")
def generator(tiny_folder: Path) -> ImageGenerator:
    return ImageGenerator(tiny_folder)


@pytest.fixture(scope="module", params=["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with Engine("cpu", request.param) as engine:
        yield engine


def parse(generator: ImageGenerator, one: dict[str, Any]) -> Any:
    return generator.Inputs.parse({name: value for name, value in one.items() if name != "seed"})


def make(engine: Engine, generator: ImageGenerator, requests: list[dict[str, Any]], **how: Any) -> list[studio.Media]:
    """Run requests (each with its seed) together; they share steps where they can."""
    asked = [Request.of(generator, parse(generator, one), one["seed"], PLUGIN, **how) for one in requests]
    return [ticket.result(500) for ticket in engine.submit_many(asked)]


MIXED = [
    {"prompt": "a red apple", "seed": 1, "steps": 3, "guidance": 5, "size": "64x64"},
    {"prompt": "octopus", "seed": 2, "steps": 7, "guidance": 1, "size": "64x64"},
    {"prompt": "一个红苹果", "seed": 3, "steps": 5, "guidance": 9, "size": "64x64", "negative": "octopus"},
    {"prompt": "octopus", "seed": 2, "steps": 4, "guidance": 2, "size": "96x64", "sampler": "euler"},
    {"prompt": "a red apple", "seed": 5, "steps": 4, "guidance": 2, "size": "64x64", "sampler": "euler"},
]


def test_batched_with_others_is_as_alone(engine: Engine, generator: ImageGenerator) -> None:
    """Prompts, seeds, guidance, steps, samplers and sizes all differ; each picture is as if it had run alone.

    Within one level in float32. A step of bfloat16 is half a level by itself, and untrained weights make more of it.
    """
    most = {"float32": 1, "bfloat16": 4}
    together = make(engine, generator, MIXED)
    for one, made in zip(MIXED, together, strict=True):
        (alone,) = make(engine, generator, [one])
        assert isinstance(made.recipe, Recipe)
        gap = np.abs(pixels(alone) - pixels(made))
        assert gap.max() <= most[made.recipe.spec.dtype]
        assert gap.mean() < most[made.recipe.spec.dtype] / 10
    widths = [made.recipe.batch_width.max for made in together if made.recipe]
    assert max(widths) > 1  # those of one size did share steps; how many pay depends on what else the machine does


def test_same_seed_same_bytes(engine: Engine, generator: ImageGenerator) -> None:
    # The host chooses threads by the load, and sums differ by them in the last bit.
    first, second = (make(engine, generator, [MIXED[2]], threads=1)[0] for _ in range(2))
    assert first.sha256 == second.sha256
    (other,) = make(engine, generator, [{**MIXED[2], "seed": 4}])
    assert other.sha256 != first.sha256


@pytest.mark.parametrize(
    ("steps", "guidance", "negative"), [(1, 5.0, ""), (4, 5.0, "octopus"), (20, 1.0, ""), (16, 3.0, "")]
)
def test_equals_the_stock_pipeline(tiny_folder: Path, steps: int, guidance: float, negative: str) -> None:
    check_against_stock(tiny_folder, (32, 32), steps, guidance, negative)


@pytest.mark.slow
@pytest.mark.parametrize(("prompt_steps", "guidance"), [(20, 5.0), (9, 1.0)])
def test_starter_equals_the_stock_pipeline(prompt_steps: int, guidance: float) -> None:
    check_against_stock(STARTER, (128, 128), prompt_steps, guidance, "")


def check_against_stock(folder: Path, size: tuple[int, int], steps: int, guidance: float, negative: str) -> None:
    """The same folder, initial latents, noise schedule and steps: within 1/255 a pixel of StableDiffusionPipeline."""
    from diffusers import StableDiffusionPipeline

    from studio_diffusion.latent import LatentDiffusion

    generator = ImageGenerator(folder)
    model = LatentDiffusion(folder, "cpu", torch.float32)
    inputs = generator.Inputs.model_construct(
        prompt="a red apple",
        negative=negative,
        steps=steps,
        guidance=guidance,
        size=f"{size[0]}x{size[1]}",
        sampler="dpmpp-2m",
    )
    with torch.inference_mode():
        state = generator.start(model, inputs, studio.Rng(7))
        noise = state.x
        while not state.done:
            (state,) = generator.step(model, [state])
        ours = pixels(generator.finish(model, state))
    stock = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    stock.set_progress_bar_config(disable=True)
    theirs = stock(
        "a red apple", negative_prompt=negative, num_inference_steps=steps, guidance_scale=guidance,
        latents=noise[None], width=size[0], height=size[1],
    ).images[0]  # fmt: skip
    assert np.abs(ours - np.asarray(theirs).astype(int)).max() <= 1
    assert ours.std() > 1  # not a blank


def test_steps_leave_their_states(tiny_folder: Path, generator: ImageGenerator) -> None:
    model = generator.load(studio.ModelRef(), "cpu", "float32")
    with torch.inference_mode():
        state = generator.start(model, generator.Inputs.parse({"prompt": "octopus", "steps": 3}), studio.Rng(0))
        before = state.x.clone()
        (once,) = generator.step(model, [state])
        (twice,) = generator.step(model, [state])
    assert torch.equal(state.x, before)
    assert torch.equal(once.x, twice.x)
    assert state.position == 0
    assert once.position == 1


@given(share=st.floats(0, 1), gain=st.floats(1.5, 8))
def test_rescaling_takes_contrast_back(share: float, gain: float) -> None:
    """None of it at 0, to the deviation of the unguided at 1, each row by itself; between, in proportion."""
    plain = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    far = plain * torch.tensor([gain, 1.0])[:, None, None, None]
    made = rescaled(far, plain, torch.full((2, 1, 1, 1), share))
    torch.testing.assert_close(made[1], plain[1])
    torch.testing.assert_close(made[0].std(), plain[0].std() * (share + (1 - share) * gain))


def test_rescaled_pictures_share_steps(engine: Engine, generator: ImageGenerator) -> None:
    asked = [{**MIXED[2], "rescale": share} for share in (0.0, 0.7)]
    plain, less = make(engine, generator, asked)
    alone = make(engine, generator, [MIXED[2]])[0]
    assert np.abs(pixels(alone) - pixels(plain)).mean() < 0.5
    assert np.abs(pixels(less) - pixels(plain)).mean() > 1


def test_guidance_of_one_costs_one_row(generator: ImageGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    model = generator.load(studio.ModelRef(), "cpu", "float32")
    widths = []
    forward = type(model.unet).forward
    monkeypatch.setattr(
        type(model.unet), "forward", lambda self, x, *a, **k: widths.append(len(x)) or forward(self, x, *a, **k)
    )
    with torch.inference_mode():
        for guidance in (1, 5):
            inputs = generator.Inputs.parse({"prompt": "octopus", "steps": 1, "guidance": guidance})
            generator.step(model, [generator.start(model, inputs, studio.Rng(0))])
    assert widths == [1, 2]


def test_previews_are_pictures(engine: Engine, generator: ImageGenerator) -> None:
    inputs = generator.Inputs.parse({"prompt": "octopus", "steps": 4, "size": "64x64"})
    events = list(engine.submit_many([Request.of(generator, inputs, 0, PLUGIN, preview_every=1)])[0].events())
    previews = [event.media for event in events if type(event).__name__ == "Preview"]
    assert len(previews) == 3
    assert all(preview.pil.size == (64, 64) for preview in previews)


def test_a_long_prompt_is_cut_and_said(engine: Engine, generator: ImageGenerator) -> None:
    (made,) = make(engine, generator, [{"prompt": "apple " * 130 + "zebra", "seed": 0, "steps": 1, "size": "64x64"}])
    assert made.recipe is not None
    (notice,) = made.recipe.notices
    assert "112 tokens" in notice
    assert "zebra" in notice


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": "  \n"}, "empty"),
        ({"prompt": "x" * 2001}, "2000"),
        ({"prompt": "x", "steps": 0}, "steps"),
        ({"prompt": "x", "guidance": float("nan")}, "guidance"),
        ({"prompt": "x", "guidance": -1}, "guidance"),
        ({"prompt": "x", "size": "100x100"}, "multiple of 32"),
        ({"prompt": "x", "size": "0x64"}, "multiple of 32"),
        ({"prompt": "x", "size": "99968x99968"}, "1024"),
        ({"prompt": "x", "size": "-64x64"}, "size"),
        ({"prompt": "x", "size": "NaN"}, "WIDTHxHEIGHT"),
        ({"prompt": "x", "sampler": "eular"}, "sampler"),
    ],
)
def test_bad_inputs_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        ImageGenerator.Inputs.parse(given)


def test_damaged_weights_are_named(tiny_folder: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "damaged"
    shutil.copytree(tiny_folder, folder)
    victim = folder / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(victim.read_bytes())
    data[-100] ^= 1
    victim.write_bytes(data)
    generator = ImageGenerator(folder)
    with Engine("cpu", "float32") as engine, pytest.raises(WeightsError, match=r"diffusion_pytorch_model.*sha256"):
        make(engine, generator, [MIXED[0]])


def test_importing_the_plugin_loads_no_torch() -> None:
    code = "import studio_diffusion, sys; studio_diffusion.studio_generators(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_each_picture_is_normalised_by_itself(generator: ImageGenerator) -> None:
    """To the last bit, however many are decoded together."""
    vae = generator.load(studio.ModelRef(), "cpu", "float32").vae
    norms = [module for module in vae.modules() if isinstance(module, torch.nn.GroupNorm)]
    assert norms
    for norm in norms:
        stock = torch.nn.GroupNorm(norm.num_groups, norm.num_channels, norm.eps).requires_grad_(False)
        stock.load_state_dict(norm.state_dict())
        x = torch.randn(3, norm.num_channels, 40, 40).contiguous(memory_format=torch.channels_last)
        together = norm(x)
        assert torch.equal(together, torch.cat([norm(each) for each in x.split(1)]))
        torch.testing.assert_close(together, stock(x))


@pytest.mark.parametrize(
    ("part", "where"), [("text_encoder", "start: .*`text`"), ("unet", "step 1: .*`x`"), ("vae", "finish: .*decoded")]
)
def test_weights_that_are_nan_are_an_error_where_they_show(tiny_folder: Path, part: str, where: str) -> None:
    """Never a black picture."""

    class Damaged(ImageGenerator):
        def load(self, ref, device: str, dtype: str) -> Any:
            model = super().load(ref, device, dtype)
            for parameter in getattr(model, part).parameters():
                parameter.data.fill_(torch.nan)
            return model

    generator = Damaged(tiny_folder)
    inputs = generator.Inputs.parse({"prompt": "a red apple", "steps": 2, "size": "64x64"})
    with (
        Engine("cpu", "float32") as engine,
        pytest.raises(GeneratorFailed, match=f"in {where}.*; the weights .*{part}"),
    ):
        engine.submit(Request.of(generator, inputs, 1, PLUGIN)).result(500)
