from __future__ import annotations

import io
import os
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import studio
from studio.errors import MediaError, StoreError
from studio.media.png import with_text
from studio.recipe import MediaRef, PluginRef, Recipe

PIXELS = st.sampled_from([(), (3,), (4,)]).flatmap(
    lambda tail: st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
        lambda size: hnp.arrays(np.uint8, (*size, *tail))
    )
)
FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)


def recipe_for(image, **more):
    return Recipe(
        generator="image",
        plugin=PluginRef(name="p", version="1"),
        kind="image",
        inputs={"prompt": "a red apple 一个红苹果", "negative": "blur", "guidance": 5.0, "size": [8, 8], "steps": 20},
        seed=7,
        output=image.ref,
        created="2020-01-01T00:00:00+00:00",
        seconds=1.5,
        **more,
    )


@given(pixels=PIXELS)
def test_pictures_come_back(pixels):
    image = studio.Image.from_array(pixels)
    again = studio.Image.decode(image.data)
    assert again == image
    assert hash(again) == hash(image)
    assert np.array_equal(again.samples(), pixels)
    assert again.data == image.data
    assert studio.Image.identify(image.data) == image.sha256
    assert (image.size[1], image.size[0]) == pixels.shape[:2]


@given(pixels=PIXELS)
def test_the_recipe_does_not_change_the_identity(pixels):
    image = studio.Image.from_array(pixels)
    recipe = recipe_for(image)
    told = image.attach(recipe, None)
    again = studio.Image.decode(told.file_bytes())
    assert again == image
    assert again.recipe == recipe.portable()
    assert told.file_bytes() == again.file_bytes()


def test_equal_runs_at_different_times_give_equal_files():
    image = studio.Image.from_array(np.zeros((4, 4, 3), np.uint8))
    one = recipe_for(image)
    other = one.model_copy(update={"created": "2021-01-01T00:00:00+00:00", "seconds": 9.0})
    assert image.attach(one, None).file_bytes() == image.attach(other, None).file_bytes()


def test_pictures_differ_by_mode_and_shape():
    zeros = [np.zeros(shape, np.uint8) for shape in [(2, 8), (8, 2), (4, 4), (2, 2, 4)]]
    assert len({studio.Image.from_array(each).sha256 for each in zeros}) == 4


def test_the_picture_lent_cannot_be_changed():
    image = studio.Image.from_array(np.zeros((2, 2, 3), np.uint8))
    before = image.sha256
    image.pil.putpixel((0, 0), (255, 0, 0))
    assert studio.Image(image.pil).sha256 == before


@pytest.mark.parametrize("mode", ["1", "P", "LA", "CMYK", "YCbCr", "I", "F", "I;16"])
def test_other_modes_are_converted(mode):
    plain = PIL.Image.new("L", (3, 3), 255)
    pil = PIL.Image.new(mode, (3, 3), 65535) if mode in ("I", "I;16") else plain.convert(mode)
    image = studio.Image(pil)
    assert image.mode in ("L", "RGB", "RGBA")
    assert image.samples().reshape(9, -1)[:, 0].tolist() == pytest.approx([255] * 9, abs=1)


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_other_formats_are_read(form):
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (8, 8), "red").save(buffer, form)
    image = studio.Image.decode(buffer.getvalue())
    assert np.abs(image.samples()[0, 0, :3].astype(int) - [255, 0, 0]).max() <= 2


@settings(max_examples=60)
@given(end=st.floats(0, 0.99))
def test_truncated_pictures_are_refused(end):
    rng = np.random.default_rng(0)
    data = studio.Image.from_array(rng.integers(0, 255, (40, 40, 3), np.uint8)).data
    with pytest.raises(MediaError):
        studio.Image.decode(data[: int(len(data) * end)])


def png_claiming(width, height):
    head = struct.pack(">II5B", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


@pytest.mark.parametrize("size", [(50_001, 1000), (2**31 - 1, 2**31 - 1), (200_000, 200_000), (9000, 9000)])
def test_huge_pictures_are_refused_before_their_pixels(size):
    with pytest.raises(MediaError, match="pixels"):
        studio.Image.decode(png_claiming(*size))


def test_huge_files_are_refused(tmp_path):
    path = tmp_path / "a.png"
    with path.open("wb") as file:
        file.truncate(studio.Image.max_file_bytes + 1)
    with pytest.raises(MediaError, match="larger than"):
        studio.Image.open(path)


@given(data=st.binary(max_size=200))
def test_garbage_is_refused(data):
    for kind in (studio.Image, studio.Audio, studio.Video, studio.Embedding):
        with pytest.raises(MediaError):
            kind.decode(data)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Aurora Photo Studio 7", "another program"),
        ("{}", "another program"),
        ("[" * 100_000, "another program"),
        ("null", "another program"),
        ('{"schema_version": 99}', "recipe cannot be read"),
        ('{"schema_version": ' + "[" * 100_000, "recipe cannot be read"),
        ('{"schema_version": 1, "seed": ' + "9" * 5000 + "}", "recipe cannot be read"),
        ("x" * (2 << 20), "longer than"),
    ],
)
def test_a_text_that_is_not_a_recipe_leaves_a_picture(text, told):
    image = studio.Image.from_array(np.full((2, 2), 9, np.uint8))
    again = studio.Image.decode(with_text(image.data, {"studio": text}))
    assert again == image
    assert again.recipe is None
    assert told in again.notices[-1]


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_text_comes_back(text):
    assert studio.Text.decode(studio.Text(text).data).text == text


def test_text_that_is_none_is_refused():
    with pytest.raises(MediaError):
        studio.Text.decode(b"\xff")
    with pytest.raises(MediaError):
        studio.Text("\ud800").data  # noqa: B018 (reading it raises)


@given(vector=hnp.arrays(np.float32, st.integers(1, 50), elements=FLOATS))
def test_embeddings_come_back(vector):
    made = studio.Embedding(vector)
    assert studio.Embedding.decode(made.data) == made
    assert np.array_equal(studio.Embedding.decode(made.data).vector, vector)


@pytest.mark.parametrize("vector", [[], [[1.0]], [float("nan")], [float("inf")]])
def test_bad_embeddings_are_refused(vector):
    with pytest.raises(MediaError):
        studio.Embedding(np.array(vector))


def test_pickles_are_never_loaded():
    buffer = io.BytesIO()
    np.save(buffer, np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(MediaError):
        studio.Embedding.decode(buffer.getvalue())


def test_saving_and_opening(tmp_path):
    image = studio.Image.from_array(np.full((4, 4, 3), 9, np.uint8))
    told = image.attach(recipe_for(image), None)
    path = told.save(tmp_path / "a.png")
    again = studio.Image.open(path)
    assert (again, again.path, again.recipe) == (image, path, told.recipe.portable())
    assert os.listdir(tmp_path) == ["a.png"]
    with pytest.raises(StoreError):
        image.save(tmp_path / "no" / "a.png")
    with pytest.raises(MediaError, match="cannot read"):
        studio.Text.open(tmp_path / "gone.txt")


def test_media_is_named_by_hash_and_type():
    assert studio.Text("a").ref == MediaRef(sha256=studio.Text("a").sha256, media_type="text/plain")
