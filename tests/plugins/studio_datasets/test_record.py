"""The split is the same everywhere; pictures of every form come centred on white."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio_datasets.record import Record, held_out, on_white


def record(name: str) -> Record:
    return Record(id=name, source="emoji", group="food", label="apple")


def test_the_split_never_changes() -> None:
    """Weights that were trained on one split must not be tested on another."""
    assert [i for i in range(40) if held_out(record(f"emoji-{i}"), 5)] == [7, 8, 10, 19, 29, 35]


def test_the_split_is_of_the_id_alone() -> None:
    for i in range(50):
        one = record(f"emoji-{i}")
        assert held_out(one, 5) == held_out(replace(one, label="pear", source="clipart", split="test"), 5)


@pytest.mark.parametrize("one_in", [2, 5, 12])
def test_the_share_is_near(one_in: int) -> None:
    count, n = sum(held_out(record(f"clipart-food/{i}"), one_in) for i in range(6000)), 6000
    assert abs(count - n / one_in) < 4 * math.sqrt(n / one_in)


@given(width=st.integers(1, 300), height=st.integers(1, 300), size=st.sampled_from([32, 64, 128]))
def test_on_white_fits_centres_and_keeps_the_aspect(width: int, height: int, size: int) -> None:
    made = on_white(PIL.Image.new("RGB", (width, height), (0, 0, 0)), size)
    assert made.shape == (size, size, 3)
    assert made.dtype == np.uint8
    scale = size / max(width, height)
    dark = 255 - made[..., 0].astype(float)
    for axis, side in ((0, width), (1, height)):
        across = np.flatnonzero(dark.max(axis=axis) > dark.max() / 4)
        assert len(across) == pytest.approx(side * scale, abs=2 + scale)
        assert across.mean() + 0.5 == pytest.approx(size / 2, abs=1 + scale)  # one pixel of the source may be odd


@given(alpha=st.integers(0, 255), colour=st.tuples(*[st.integers(0, 255)] * 3))
def test_alpha_lies_on_white(alpha: int, colour: tuple[int, int, int]) -> None:
    made = on_white(PIL.Image.new("RGBA", (20, 20), (*colour, alpha)), 32)
    wanted = [255 + (part - 255) * alpha / 255 for part in colour]
    assert np.abs(made - np.array(wanted)).max() <= 1.01


def test_every_mode_of_pillow_comes_to_the_same() -> None:
    rgba = PIL.Image.new("RGBA", (24, 12), (0, 0, 0, 0))
    rgba.paste((255, 255, 255, 255), (0, 0, 24, 12))
    rgba.paste((0, 0, 0, 255), (6, 3, 18, 9))
    wanted = on_white(rgba, 32)
    for mode in ("RGB", "L", "LA", "1", "P", "PA", "CMYK"):
        other = rgba.convert("RGB").convert(mode) if mode in ("1", "P", "PA", "CMYK") else rgba.convert(mode)
        assert np.abs(on_white(other, 32).astype(int) - wanted).max() <= 1, mode


def test_a_palette_with_a_transparent_entry() -> None:
    image = PIL.Image.new("P", (16, 16), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.paste(1, (0, 0, 16, 8))
    image.info["transparency"] = 0
    made = on_white(image, 16)
    assert (made[:7] == (255, 0, 0)).all()
    assert (made[9:] == 255).all()
