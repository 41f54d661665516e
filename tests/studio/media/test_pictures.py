from __future__ import annotations

import io
import os
import struct
import zlib
from contextlib import suppress

import numpy as np
import PIL.Image
import PIL.ImageCms
import PIL.PngImagePlugin
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import studio
from studio.errors import MediaError
from studio.media.pictures import MAX_SCANS

RED = np.full((8, 8, 3), (200, 30, 30), np.uint8)


def saved(pil, form="PNG", **how):
    buffer = io.BytesIO()
    pil.save(buffer, form, **how)
    return buffer.getvalue()


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(rows, kind, depth, *more):
    """A PNG of these rows of packed bytes."""
    width = len(rows[0]) * 8 // (depth * {0: 1, 2: 3}[kind])
    head = struct.pack(">IIBBBBB", width, len(rows), depth, kind, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(more) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "alpha"),
    [
        (png([bytes((255, 0, 255, 0, 9, 0))], 2, 8, chunk(b"tRNS", struct.pack(">HHH", 255, 0, 255))), [0, 255]),
        (png([bytes((7, 8))], 0, 8, chunk(b"tRNS", struct.pack(">H", 7))), [0, 255]),
        (png([b"\xf0"], 0, 4, chunk(b"tRNS", struct.pack(">H", 15))), [0, 255]),
        (png([b"\xc0"], 0, 1, chunk(b"tRNS", struct.pack(">H", 1))), [0, 0] + [255] * 6),
        (png([struct.pack(">HH", 1000, 1001)], 0, 16, chunk(b"tRNS", struct.pack(">H", 1000))), [0, 255]),
        (png([struct.pack(">6H", 65535, 0, 0, 0, 0, 0)], 2, 16, chunk(b"tRNS", struct.pack(">HHH", 65535, 0, 0))),
         [0, 255]),
    ],
)  # fmt: skip
def test_a_colour_key_is_alpha(data, alpha):
    image = studio.Image.decode(data)
    assert image.mode == "RGBA"
    assert image.samples()[0, :, 3].tolist() == alpha


def swapped():
    """sRGB's profile with red and green swapped."""
    profile = bytearray(PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes())
    red, green = profile.find(b"rXYZ"), profile.find(b"gXYZ")
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(profile)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_come_to_srgb_from_the_profile(form, mode):
    if form == "JPEG" and mode != "RGB":
        mode = "RGB"
    if (form, mode) in (("WEBP", "P"), ("AVIF", "P")):
        mode = "RGBA"
    pil = PIL.Image.fromarray(RED)
    pil = pil.quantize(4) if mode == "P" else pil.convert(mode)
    if mode == "RGBA":
        pil.putalpha(77)
    image = studio.Image.decode(saved(pil, form, icc_profile=swapped()))
    assert np.abs(image.samples()[4, 4, :3].astype(int) - [30, 200, 30]).max() <= 6
    assert "converted to sRGB" in image.notices[0]
    if image.mode == "RGBA":
        assert abs(int(image.samples()[4, 4, 3]) - 77) <= 2


def test_the_profile_of_srgb_leaves_pixels_to_the_bit():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    profile = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()
    image = studio.Image.decode(saved(PIL.Image.fromarray(pixels), icc_profile=profile))
    assert np.array_equal(image.samples(), pixels)
    assert image.notices == ()


@pytest.mark.parametrize("profile", [b"nonsense", bytes(2 << 20), bytes(5 << 20)])
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_a_profile_that_cannot_be_used_is_told(profile, form):
    if form == "PNG":
        body = b"p\0\0" + zlib.compress(profile)
        whole = saved(PIL.Image.fromarray(RED))
        data = whole[:33] + chunk(b"iCCP", body) + whole[33:]
    else:
        data = saved(PIL.Image.fromarray(RED), form, icc_profile=profile)
    image = studio.Image.decode(data)
    assert np.array_equal(image.samples(), RED)
    assert "ignored" in image.notices[0]


def test_a_grey_profile_keeps_grey():
    grey = PIL.Image.new("L", (4, 4), 128)
    image = studio.Image.decode(saved(grey, "TIFF", icc_profile=swapped()))
    assert image.mode == "L"  # the profile is of another kind of colour
    assert "ignored" in image.notices[0]


@pytest.mark.parametrize(
    ("array", "want"),
    [
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[0, 1.5, 3]], np.float32), [0, 255, 255]),
        (np.array([[0, 128, 255]], np.float32), [0, 128, 255]),
        (np.array([[0, 32896, 65535]], np.float32), [0, 128, 255]),
        (np.array([[0, 32896, 65535]], np.int32), [0, 128, 255]),
        (np.array([[0, 128, 255]], np.int32), [0, 128, 255]),
        (np.array([[0, 2**30, 2**31 - 1]], np.int32), [0, 128, 255]),
        (np.array([[0, 32896, 65535]], np.uint16), [0, 128, 255]),
    ],
)
def test_deep_pictures_come_at_8_bits(array, want):
    image = studio.Image.decode(saved(PIL.Image.fromarray(array), "TIFF"))
    assert image.samples()[0].tolist() == want


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e9])
def test_floats_without_a_known_range_are_refused(value):
    with pytest.raises(MediaError, match=r"finite|floats go up"):
        studio.Image.decode(saved(PIL.Image.fromarray(np.array([[0, value]], np.float32)), "TIFF"))


def test_long_texts_and_bytes_after_the_end_are_no_matter():
    info = PIL.PngImagePlugin.PngInfo()
    info.add_itxt("workflow", '{"id": 1}, ' * 130_000, zip=True)
    data = saved(PIL.Image.fromarray(RED), pnginfo=info)
    assert np.array_equal(studio.Image.decode(data + b"more").samples(), RED)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_pictures_come_upright(form, turn):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :8] = 255
    exif = PIL.Image.Exif()
    exif[0x112] = turn
    image = studio.Image.decode(saved(PIL.Image.fromarray(pixels), form, exif=exif))
    assert image.size == ((32, 16) if turn < 5 else (16, 32))
    corners = image.samples()[[2, 2, -3, -3], [2, -3, 2, -3], 0] > 128
    assert corners.tolist().index(True) == {1: 0, 2: 1, 3: 3, 4: 2, 5: 0, 6: 1, 7: 3, 8: 2}[turn]


def test_a_damaged_exif_is_told():
    exif = PIL.Image.Exif()
    exif[0x112] = 6
    data = saved(PIL.Image.fromarray(RED), "WEBP", exif=exif, lossless=True)
    data = data.replace(exif.tobytes()[6:14], b"XX" + exif.tobytes()[8:14])
    image = studio.Image.decode(data)
    assert np.array_equal(image.samples(), RED)


def test_a_jpeg_of_many_scans_is_refused():
    data = saved(PIL.Image.new("L", (64, 64)), "JPEG", progressive=True)
    at = data.rindex(b"\xff\xda")
    scan = data[at:-2]
    with pytest.raises(MediaError, match="scans"):
        studio.Image.decode(data[:at] + scan * (MAX_SCANS + 1) + data[-2:])


def test_avif_in_and_out(tmp_path):
    image = studio.Image.from_array(np.full((32, 48, 3), (200, 30, 90), np.uint8))
    again = studio.Image.open(image.save(tmp_path / "a.avif"))
    assert again.size == (48, 32)
    assert np.abs(again.samples().astype(int) - image.samples()).max() <= 4


@pytest.mark.parametrize("kind", [studio.Image, studio.Video, studio.Audio, studio.Embedding, studio.Text])
def test_only_regular_files_are_opened(tmp_path, kind):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, "/dev/zero", f"{tmp_path}/a\0b"):
        with pytest.raises(MediaError, match=r"not a file|NUL"):
            kind.open(path)


@settings(max_examples=150, deadline=None)
@given(form=st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"]),
       changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=8))  # fmt: skip
def test_damage_is_a_media_error_or_a_picture(form, changes):
    data = bytearray(WHOLE[form])
    for where, value in changes:
        data[int(where * len(data))] = value
    with suppress(MediaError):
        assert studio.Image.decode(bytes(data)).size[0] > 0


WHOLE = {form: saved(PIL.Image.fromarray(RED.repeat(4, 0)), form) for form in
         ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")}  # fmt: skip
