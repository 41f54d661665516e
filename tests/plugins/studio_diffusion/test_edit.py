"""Pictures from pictures: what is kept is kept to the last bit, alone, with others and after a kill; refusals."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import studio
from studio.diffusion.samplers import noise_levels
from studio.engine import Engine, Request
from studio.engine.checkpoints.encoding import decode_state, encode_state
from studio.errors import InputError, MediaError
from studio.recipe import PluginRef
from studio_diffusion.edit import Canvas, composite
from studio_diffusion.image import ImageGenerator
from studio_diffusion.inputs import FAST_GUIDANCE, FAST_STEPS

PLUGIN = PluginRef(name="test", version="1")


def picture(width: int = 64, height: int = 64, mode: str = "RGB", seed: int = 0) -> studio.Image:
    shape = (height, width, 4 if mode == "RGBA" else 3)
    return studio.Image.from_array(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))


def half(width: int = 64, height: int = 64) -> studio.Image:
    """A mask whose right half is drawn anew."""
    mask = np.zeros((height, width), np.uint8)
    mask[:, width // 2 :] = 255
    return studio.Image.from_array(mask)


@pytest.fixture(scope="module")
def generator(tiny_folder: Path) -> ImageGenerator:
    return ImageGenerator(tiny_folder)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine("cpu", "float32") as engine:
        yield engine


def make(engine: Engine, generator: ImageGenerator, *asked: dict[str, Any]) -> list[studio.Image]:
    plain = {"prompt": "octopus", "size": "64x64", "steps": 4}
    requests = [Request.of(generator, generator.Inputs.parse(plain | one), 3, PLUGIN) for one in asked]
    made = [ticket.result(500) for ticket in engine.submit_many(requests)]
    assert all(isinstance(each, studio.Image) for each in made)
    return made  # type: ignore[return-value]


def pixels(image: studio.Image) -> np.ndarray:
    return np.asarray(image.pil.convert("RGB"))


@given(
    x=st.integers(0, 60), y=st.integers(0, 60), width=st.integers(1, 64), height=st.integers(1, 64),
    left=st.sampled_from([0, 8, 32]), top=st.sampled_from([0, 24]),
)  # fmt: skip
def test_a_canvas_keeps_and_opens_what_it_should(x: int, y: int, width: int, height: int, left: int, top: int) -> None:
    """Against the rule written out: a box opens its pixels, room at the sides is open, a cell is open if a pixel is."""
    width, height = min(width, 64 - x), min(height, 64 - y)
    canvas = Canvas.of(
        picture(), (64, 64), box=f"{x},{y},{width},{height}", extend=f"{left},{top},0,0" if left + top else ""
    )
    assert canvas.mask is not None
    wanted = np.zeros((64 + top, 64 + left), np.float32)
    wanted[:top], wanted[:, :left] = 1, 1
    wanted[top + y : top + y + height, left + x : left + x + width] = 1
    assert (canvas.mask == wanted).all()
    assert (canvas.pixels[top:, left:] == pixels(picture())).all()
    cells = canvas.cells(8)
    assert cells is not None
    for (row, column), cell in np.ndenumerate(cells):
        assert cell == wanted[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8].max()


@given(grey=st.integers(0, 255))
def test_a_soft_mask_mixes(grey: int) -> None:
    made, kept = np.full((2, 2, 3), 200, np.uint8), np.full((2, 2, 3), 100, np.uint8)
    mixed = composite(made, kept, np.full((2, 2), grey / 255, np.float32))
    assert (np.abs(mixed - (100 + 100 * grey / 255)) <= 0.5 + 1e-3).all()


@pytest.mark.parametrize("sampler", ["dpmpp-2m", "euler"])
def test_kept_pixels_are_kept_to_the_last_bit(engine: Engine, generator: ImageGenerator, sampler: str) -> None:
    given = picture()
    (made,) = make(engine, generator, {"image": given, "mask": half(), "sampler": sampler})
    assert (pixels(made)[:, :32] == pixels(given)[:, :32]).all()
    assert (pixels(made)[:, 32:] != pixels(given)[:, 32:]).any()
    (wide,) = make(engine, generator, {"image": given, "extend": "0,0,32,0", "sampler": sampler})
    assert wide.size == (96, 64)
    assert (pixels(wide)[:, :64] == pixels(given)).all()


def test_box_and_mask_are_one_thing(generator: ImageGenerator) -> None:
    """Without an engine, whose batches and threads may round the last bit differently."""
    model = generator.load(studio.ModelRef(), "cpu", "float32")
    made = []
    for asked in ({"mask": half()}, {"box": "32,0,32,64"}):
        inputs = generator.Inputs.parse({"prompt": "octopus", "size": "64x64", "steps": 4, "image": picture()} | asked)
        with torch.inference_mode():
            state = generator.start(model, inputs, studio.Rng(3))
            while state.position < state.steps:
                (state,) = generator.step(model, [state])
            made.append(generator.finish(model, state))
    assert made[0].sha256 == made[1].sha256


def test_edits_share_steps_with_plain_requests(generator: ImageGenerator) -> None:
    """One key, one forward pass, and each to the picture that it would have been alone, within a level."""
    model = generator.load(studio.ModelRef(), "cpu", "float32")
    asked = [{}, {"image": picture(), "mask": half()}, {"image": picture(), "strength": 1.0}, {"fast": True}]
    with torch.inference_mode():
        states = [
            generator.start(model, generator.Inputs.parse({"prompt": "octopus", "size": "64x64"} | each), studio.Rng(i))
            for i, each in enumerate(asked)
        ]
        assert len({generator.batch_key(state) for state in states}) == 1
        alone, together = list(states), list(states)
        for _ in range(FAST_STEPS):
            together = generator.step(model, together)
            alone = [generator.step(model, [state])[0] for state in alone]
        for one, other in zip(together, alone, strict=True):
            gap = pixels(generator.finish(model, one)).astype(int) - pixels(generator.finish(model, other))
            assert np.abs(gap).max() <= 1


def test_less_strength_stays_nearer(generator: ImageGenerator) -> None:
    """Latents begin between the picture's and the noise as rectified flow has them; steps are a part of all."""
    model = generator.load(studio.ModelRef(), "cpu", "float32")

    def start(strength: float) -> Any:
        asked = {"prompt": "octopus", "size": "64x64", "image": picture(), "strength": strength}
        with torch.inference_mode():
            return generator.start(model, generator.Inputs.parse(asked), studio.Rng(1))

    x0 = model.latents(torch.from_numpy(pixels(picture()).copy()))
    gaps = [float((start(strength).x - x0).square().mean()) for strength in (0.1, 0.4, 0.7, 1.0)]
    assert gaps == sorted(gaps)
    assert [start(strength).steps for strength in (0.01, 0.5, 1.0)] == [1, 10, 20]
    assert start(0.5).levels == tuple(0.5 * level for level in noise_levels(10))


@pytest.mark.parametrize("taken", [1, 3])
def test_an_edit_goes_on_from_its_saved_state(generator: ImageGenerator, taken: int) -> None:
    """Through the text and tensors of a checkpoint, to the same bytes; the state stepped from is left as it was."""
    model = generator.load(studio.ModelRef(), "cpu", "float32")
    asked = {"prompt": "octopus", "size": "64x64", "steps": 4, "image": picture(), "mask": half()}
    with torch.inference_mode():
        first = state = generator.start(model, generator.Inputs.parse(asked), studio.Rng(1))
        before = first.x.clone()
        for _ in range(taken):
            (state,) = generator.step(model, [state])
        fields, tensors = encode_state(state)
        read = decode_state(json.loads(json.dumps(fields)), tensors, first, "cpu")
        while not state.done:
            (state,), (read,) = generator.step(model, [state]), generator.step(model, [read])
        assert generator.finish(model, read) == generator.finish(model, state)
    assert torch.equal(first.x, before)


def test_fast_is_four_steps_and_chooses_alone(engine: Engine, generator: ImageGenerator) -> None:
    plain, fast = {"prompt": "octopus", "size": "64x64"}, {"prompt": "octopus", "size": "64x64", "fast": True}
    written = {**plain, "steps": FAST_STEPS, "guidance": FAST_GUIDANCE}
    tickets = engine.submit_many(
        [Request.of(generator, generator.Inputs.parse(each), 0, PLUGIN) for each in (fast, written)]
    )
    by_fast, by_hand = (ticket.result(500) for ticket in tickets)
    assert by_fast == by_hand
    assert by_fast.recipe is not None
    assert by_fast.recipe.facts["noise_schedule"]["steps"] == FAST_STEPS
    for name in ("steps", "guidance"):
        with pytest.raises(InputError, match=f"`fast` chooses `{name}`"):
            ImageGenerator.Inputs.parse({**fast, name: 7})


def test_recipes_name_the_picture_and_make_it_again(tmp_path: Path) -> None:
    """By the shipped starter, through the store: its recipe has hashes alone, and `replay` gives the same bytes."""
    with studio.Studio(home=tmp_path, device="cpu") as host:
        given = host.image("a house", seed=1, steps=1)
        made = host.image("a tree", seed=2, steps=2, image=given, box="64,0,64,128")
        assert made.recipe is not None
        assert made.recipe.spec.inputs["image"] == {"sha256": given.sha256, "media_type": "image/png"}
        assert host.replay(made.sha256).identical


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"mask": half()}, "give `image` too"),
        ({"strength": 0.5}, "give `image` too"),
        ({"image": picture(), "mask": half(), "box": "0,0,1,1"}, "give one of them"),
        ({"image": picture(), "strength": 0}, "strength"),
        ({"image": picture(), "box": "1,2,3"}, "X,Y,WIDTH,HEIGHT"),
        ({"image": picture(), "extend": "0,0,0,0"}, "adds nothing"),
        ({"image": picture(), "extend": "0,0,10,0"}, "138x128.*multiples of 32"),
        ({"image": picture(), "extend": "0,0,1024,0"}, "up to 1024"),
        ({"image": picture(), "fit": "stretch"}, "`crop`, `letterbox`"),
    ],
)
def test_bad_edits_are_refused_at_once(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        ImageGenerator.Inputs.parse({"prompt": "x", **asked})


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"mask": half(32, 32)}, "`mask` is 32x32, but `image` is 64x64"),
        ({"mask": studio.Image.from_array(np.zeros((64, 64), np.uint8))}, "black everywhere"),
        ({"box": "60,0,5,64"}, "within the 64x64"),
        ({"box": "0,0,0,64"}, "at least one pixel"),
    ],
)
def test_masks_and_boxes_that_do_not_fit_are_refused(more: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Canvas.of(picture(), (64, 64), **more)


def test_a_mask_that_is_cropped_away_is_refused() -> None:
    with pytest.raises(InputError, match="cut off all"):
        Canvas.of(picture(192, 64), (64, 64), box="0,0,8,64")
    assert Canvas.of(picture(192, 64), (64, 64), box="0,0,8,64", fit="letterbox").mask is not None


def saved(pil: PIL.Image.Image, kind: str, **more: Any) -> bytes:
    buffer = io.BytesIO()
    pil.save(buffer, kind, **more)
    return buffer.getvalue()


def test_other_kinds_of_pictures_are_converted_and_said(tmp_path: Path) -> None:
    """CMYK to RGB, 16 bits to 8, an animation to its first frame, clear parts to white; shapes are said."""
    red = PIL.Image.new("RGB", (64, 64), (255, 0, 0))
    files = {
        "cmyk.jpg": saved(red.convert("CMYK"), "JPEG"),
        "deep.png": saved(PIL.Image.fromarray(np.full((64, 64), 65535, np.uint16)), "PNG"),
        "moving.gif": saved(red, "GIF", save_all=True, append_images=[PIL.Image.new("RGB", (64, 64))]),
    }
    wanted = {"cmyk.jpg": (255, 0, 0), "deep.png": (255, 255, 255), "moving.gif": (255, 0, 0)}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        inputs = ImageGenerator.Inputs.parse({"prompt": "x", "image": tmp_path / name})
        canvas = Canvas.of(inputs.image, (64, 64))
        assert np.abs(canvas.pixels.astype(int) - wanted[name]).max() <= 2
        assert canvas.notices == ()
    clear = Canvas.of(studio.Image.from_array(np.zeros((64, 64, 4), np.uint8)), (64, 64))
    assert (clear.pixels == 255).all()
    assert "on white" in clear.notices[0]
    wide = picture(128, 64)
    assert "cropped to 64x64" in Canvas.of(wide, (64, 64)).notices[0]
    boxed = Canvas.of(wide, (64, 64), fit="letterbox")
    assert "letterboxed" in boxed.notices[0]
    assert (boxed.pixels[:16] == 255).all()


def test_files_that_are_no_pictures_or_too_large_are_refused(tmp_path: Path) -> None:
    (tmp_path / "note.png").write_text("no picture")
    (tmp_path / "huge.png").write_bytes(saved(PIL.Image.new("1", (10_000, 10_000)), "PNG"))
    for name, words in (("note.png", "supported format"), ("huge.png", "10000x10000"), ("none.png", "none.png")):
        with pytest.raises(MediaError, match=words):
            ImageGenerator.Inputs.parse({"prompt": "x", "image": tmp_path / name})


def test_the_noise_of_jpeg_in_a_mask_redraws_nothing() -> None:
    grey = np.zeros((64, 64), np.uint8)
    grey[:, 32:] = 255
    mask = studio.Image.decode(saved(PIL.Image.fromarray(grey).convert("RGB"), "JPEG", quality=40))
    canvas = Canvas.of(studio.Image.from_array(np.full((64, 64, 3), 90, np.uint8)), (64, 64), mask=mask)
    assert canvas.cells(8).sum() == 32
    assert not canvas.mask[:, :24].any()


@pytest.mark.parametrize(("paint", "drawn"), [(255, "opaque"), (120, "clear"), (0, "clear")])
def test_a_mask_with_clear_parts_is_paint_or_a_picture_with_a_hole(paint: int, drawn: str) -> None:
    alpha = np.zeros((64, 64), np.uint8)
    alpha[:, 32:] = 255
    pixels = np.dstack([np.full((64, 64, 3), paint, np.uint8), alpha])
    picture = studio.Image.from_array(np.full((64, 64, 3), 90, np.uint8))
    canvas = Canvas.of(picture, (64, 64), mask=studio.Image.from_array(pixels))
    assert canvas.mask is not None
    assert (canvas.mask[:, 32:] == (drawn == "opaque")).all()
    assert (canvas.mask[:, :32] == (drawn == "clear")).all()
    assert bool(canvas.notices) == (drawn == "clear")
