"""Pictures of Pillow, arrays and tensors given where an input is a picture; sound as samples and rate."""

from __future__ import annotations

import base64
import io

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import studio
from studio.errors import InputError, MediaError


class Sample(studio.Inputs):
    image: studio.Image | None = studio.field(None, help="a picture")
    more: list[studio.Image] = studio.field(default_factory=list, help="pictures")
    sound: studio.Audio | None = studio.field(None, help="sound")


RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
PICTURE = studio.Image.from_array(PIXELS)


def taken(value):
    return Sample.parse({"image": value}).image


@pytest.mark.parametrize(
    "value",
    [
        PIL.Image.fromarray(PIXELS),
        PIXELS,
        PIXELS[None],
        PIXELS.transpose(2, 0, 1),
        PIXELS[:, ::-1][:, ::-1],
        PIXELS / 255,
        (PIXELS / 255).astype(np.float32),
        (PIXELS / 255).astype(np.float16),
        torch.tensor(PIXELS),
        torch.tensor(PIXELS).permute(2, 0, 1),
        torch.tensor(PIXELS).permute(2, 0, 1)[None] / 255,
        (torch.tensor(PIXELS) / 255).requires_grad_(),
        (torch.tensor(PIXELS) / 255).to(torch.float64),
    ],
    ids=lambda value: f"{type(value).__name__}-{getattr(value, 'dtype', '')}-{getattr(value, 'shape', '')}",
)
def test_pictures_of_other_libraries_are_pictures(value):
    assert taken(value) == PICTURE
    given_ = Sample.parse({"more": [value, PICTURE]})
    assert given_.more == [PICTURE, PICTURE]
    assert given_.as_recipe()["more"] == [PICTURE.ref.model_dump()] * 2


def test_other_kinds_of_pixels():
    grey = PIXELS[:, :, 0]
    assert taken(grey) == taken(grey[:, :, None]) == taken(grey[None]) == studio.Image.from_array(grey)
    assert taken(grey > 99).samples().tolist() == np.where(grey > 99, 255, 0).tolist()
    clear = np.dstack([PIXELS, grey])
    assert taken(clear).mode == taken(clear.transpose(2, 0, 1)).mode == "RGBA"
    assert taken(PIL.Image.fromarray(PIXELS).convert("P")).mode == "RGB"
    low = torch.tensor(PIXELS).to(torch.bfloat16) / 255
    assert np.abs(taken(low).samples().astype(int) - PIXELS).max() <= 1


@given(st.integers(0, 255))
def test_a_level_that_went_through_floats_is_the_same(level):
    pixels = np.full((2, 2, 3), level, np.uint8)
    for kind in (np.float16, np.float32, np.float64):
        assert np.array_equal(taken((pixels / 255).astype(kind)).samples(), pixels)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.zeros((3, 50, 4), np.uint8), "the shape (3, 50, 4) may be (C, H, W) or (H, W, C)"),
        (np.zeros((50, 50, 2), np.uint8), "(H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels, not (50, 50, 2)"),
        (np.zeros((2, 8, 8, 3), np.uint8), "a batch of 2 pictures"),
        (torch.zeros(2, 3, 8, 8), "a batch of 2 pictures"),
        (np.zeros(9, np.uint8), "not (9,)"),
        (np.zeros((0, 8, 3), np.uint8), "not (0, 8, 3)"),
        (np.array(3.0), "not ()"),
        (np.zeros((8, 8, 3), np.int64), "uint8, bool, or floats from 0 to 1, not int64"),
        (np.zeros((8, 8, 3), np.complex64), "not complex64"),
        (np.zeros((8, 8), object), "not object"),
        (torch.full((3, 8, 8), -1.0), "must be from 0 to 1, not from -1 to -1"),
        (np.full((8, 8), 255.0), "not from 255 to 255"),
        (np.full((8, 8), np.nan), "not from nan to nan"),
        (np.full((8, 8), np.inf), "not from inf to inf"),
    ],
)
def test_what_leaves_a_doubt_is_refused_by_name(value, words):
    with pytest.raises(InputError) as caught:
        taken(value)
    assert words in caught.value.message
    assert caught.value.message.startswith(f"`image` is an array of {value.dtype} {tuple(value.shape)}: ")
    assert "\n" not in caught.value.message
    assert len(caught.value.message.split()) < 45


def test_a_batch_is_a_list_of_pictures():
    assert Sample.parse({"more": np.stack([PIXELS, PIXELS])}).more == [PICTURE, PICTURE]
    assert Sample.parse({"more": torch.tensor(PIXELS).permute(2, 0, 1)[None]}).more == [PICTURE]


def test_what_cannot_be_read_is_refused_by_name():
    cut, closed = (PIL.Image.open(io.BytesIO(data)) for data in (PICTURE.data[:60], PICTURE.data))
    closed.close()
    meta, sparse = torch.zeros(8, 8, device="meta"), torch.zeros(8, 8).to_sparse()
    for value in (cut, closed, meta, sparse):
        with pytest.raises(InputError, match=r"`image` is .* cannot be read: ") as caught:
            taken(value)
        assert "\n" not in caught.value.message


def test_too_many_pixels_are_refused():
    with pytest.raises(MediaError, match="the limit is 50,000,000"):
        taken(np.broadcast_to(np.uint8(0), (10_000, 10_000)))


def test_sound_is_taken_as_samples_and_rate():
    tone = np.sin(np.arange(800) / 9)
    sound = Sample.parse({"sound": (tone, 8000)}).sound
    assert (sound.waveform.shape, sound.rate) == ((1, 800), 8000)
    assert Sample.parse({"sound": (torch.tensor(tone)[None], 8000)}).sound == sound
    assert Sample.parse({"sound": (np.stack([tone, tone]), 8000)}).sound.waveform.shape == (2, 800)
    for wrong in ((tone.astype(np.int16), 8000), (tone, 8000.5), (tone, True), (tone[None, None], 8000), (tone,), tone):
        with pytest.raises(InputError, match="`sound` is"):
            Sample.parse({"sound": wrong})


def test_notebooks_show_media():
    assert PICTURE._repr_png_() == PICTURE.data
    sound = studio.Audio(np.zeros((1, 8), np.float32), 8000)
    video = studio.Video(np.zeros((2, 16, 16, 3), np.uint8), 8)
    for media, tag in ((sound, "audio"), (video, "video")):
        shown = media._repr_mimebundle_()
        assert shown["text/html"].startswith(f"<{tag} controls")
        data = shown["text/html"].partition("base64,")[2].partition('"')[0]
        assert base64.b64decode(data) == media.data
        assert type(media).__name__ in shown["text/plain"]
