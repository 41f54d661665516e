"""Pictures of every form come centred on a white square."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio.media.pictures import square_on_white


@given(width=st.integers(1, 300), height=st.integers(1, 300), size=st.sampled_from([32, 64, 128]))
def test_it_fits_centres_and_keeps_the_aspect(width: int, height: int, size: int) -> None:
    made = square_on_white(PIL.Image.new("RGB", (width, height), (0, 0, 0)), size)
    assert made.shape == (size, size, 3)
    assert made.dtype == np.uint8
    scale = size / max(width, height)
    dark = 255 - made[..., 0].astype(float)
    for axis, side in ((0, width), (1, height)):
        across = np.flatnonzero(dark.max(axis=axis) > dark.max() / 4)
        assert len(across) == pytest.approx(side * scale, abs=2 + scale)
        assert across.mean() + 0.5 == pytest.approx(size / 2, abs=1 + scale)  # one pixel of the source may be odd


@given(alpha=st.integers(0, 255), colour=st.tuples(*[st.integers(0, 255)] * 3))
def test_alpha_lies_square_on_white(alpha: int, colour: tuple[int, int, int]) -> None:
    made = square_on_white(PIL.Image.new("RGBA", (20, 20), (*colour, alpha)), 32)
    wanted = [255 + (part - 255) * alpha / 255 for part in colour]
    assert np.abs(made - np.array(wanted)).max() <= 1.01


def test_every_mode_of_pillow_comes_to_the_same() -> None:
    rgba = PIL.Image.new("RGBA", (24, 12), (0, 0, 0, 0))
    rgba.paste((255, 255, 255, 255), (0, 0, 24, 12))
    rgba.paste((0, 0, 0, 255), (6, 3, 18, 9))
    wanted = square_on_white(rgba, 32)
    for mode in ("RGB", "L", "LA", "1", "P", "PA", "CMYK"):
        other = rgba.convert("RGB").convert(mode) if mode in ("1", "P", "PA", "CMYK") else rgba.convert(mode)
        assert np.abs(square_on_white(other, 32).astype(int) - wanted).max() <= 1, mode


def test_a_palette_with_a_transparent_entry() -> None:
    image = PIL.Image.new("P", (16, 16), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.paste(1, (0, 0, 16, 8))
    image.info["transparency"] = 0
    made = square_on_white(image, 16)
    assert (made[:7] == (255, 0, 0)).all()
    assert (made[9:] == 255).all()
