"""The generator `embed`: what CLIP's towers give, by way of the host; one clear error for anything else."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest

import studio
from studio.errors import InputError
from studio_clip import model
from studio_clip.embed import EmbedGenerator


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[studio.Studio]:
    with studio.Studio(home=tmp_path_factory.mktemp("home"), device="cpu") as host:
        yield host


def disc(colour: str, size: tuple[int, int] = (90, 60)) -> studio.Image:
    picture = PIL.Image.new("RGB", size, "white")
    PIL.ImageDraw.Draw(picture).ellipse((10, 10, 50, 50), fill=colour)
    return studio.Image(picture)


def test_it_gives_what_the_towers_give(host: studio.Studio) -> None:
    clip = model.load()
    text = host.generate("embed", text="a red circle")
    assert isinstance(text, studio.Embedding)
    np.testing.assert_allclose(text.vector, clip.encode_text(["a red circle"])[0].numpy(), atol=1e-5)
    red, blue = (host.generate("embed", image=disc(colour)) for colour in ("red", "blue"))
    assert isinstance(red, studio.Embedding)
    assert isinstance(blue, studio.Embedding)
    np.testing.assert_allclose(np.linalg.norm(red.vector), 1, atol=1e-5)
    assert red.vector @ text.vector > blue.vector @ text.vector
    assert text.recipe is not None
    assert any("clip.safetensors" in str(name) for name in text.recipe.spec.model.sha256)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "CMYK", "P", "I;16"])
def test_pictures_of_every_mode_and_shape(host: studio.Studio, mode: str) -> None:
    made = host.generate("embed", image=studio.Image(PIL.Image.new(mode, (7, 300))))
    assert isinstance(made, studio.Embedding)
    assert made.vector.shape == (384,)


def test_one_of_both_is_needed() -> None:
    for given in ({}, {"text": "  "}, {"text": "a", "image": disc("red")}):
        with pytest.raises(InputError, match="give either `text` or `image`"):
            EmbedGenerator.Inputs.parse(given)
