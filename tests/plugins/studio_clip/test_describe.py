"""The generator `clip-describe`: the word whose vector is nearest, whatever the number of words."""

from __future__ import annotations

from pathlib import Path

import PIL.Image
import pytest

import studio
from studio.errors import InputError
from studio_clip import model
from studio_clip.describe import DescribeGenerator


def test_it_says_the_nearest_word(tmp_path: Path) -> None:
    things = ("square", "apple", "sky", "car", "hat", "sea", "leaf", "dog", "cup")
    words = [f"{colour} {thing}" for colour in ("red", "green", "blue", "black") for thing in things]
    clip = model.load()
    with studio.Studio(home=tmp_path, device="cpu") as host:
        for colour in ("red", "blue", "green"):
            picture = studio.Image(PIL.Image.new("RGB", (40, 40), colour))
            made = host.generate("clip-describe", image=picture, words=words)
            cosines = clip.encode_text(words) @ clip.encode_image([picture.pil])[0]
            assert made.text == words[int(cosines.argmax())]


def test_an_empty_word_is_refused() -> None:
    picture = studio.Image(PIL.Image.new("RGB", (40, 40)))
    with pytest.raises(InputError, match="one of `words` is empty"):
        DescribeGenerator.Inputs.parse({"image": picture, "words": ["a", " "]})
