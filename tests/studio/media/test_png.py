from __future__ import annotations

import io
import struct
import zlib

import PIL.Image
import PIL.PngImagePlugin
import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio.errors import MediaError
from studio.media.png import MAX_TEXT_BYTES, SIGNATURE, read_text, with_text

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)


def plain():
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (3, 2), "red").save(buffer, "PNG")
    return buffer.getvalue()


PLAIN = plain()


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def holding(kind, body):
    return PLAIN[:33] + chunk(kind, body) + PLAIN[33:]


@given(text=TEXT, other=TEXT)
def test_texts_come_back_and_pillow_reads_them(text, other):
    made = with_text(PLAIN, {"studio": text, "parameters": other})
    assert (read_text(made, "studio"), read_text(made, "parameters"), read_text(made, "x")) == (text, other, None)
    with PIL.Image.open(io.BytesIO(made)) as image:
        image.load()
        assert image.text == {"studio": text, "parameters": other}
    assert made == with_text(PLAIN, {"studio": text, "parameters": other})


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["text", "itxt"])
def test_texts_of_other_writers_are_read(packed, kind):
    info = PIL.PngImagePlugin.PngInfo()
    (info.add_text if kind == "text" else info.add_itxt)("studio", "hello", zip=packed)
    buffer = io.BytesIO()
    PIL.Image.new("L", (1, 1)).save(buffer, "PNG", pnginfo=info)
    assert read_text(buffer.getvalue(), "studio") == "hello"


@given(end=st.integers(0, len(PLAIN) - 1))
def test_every_truncation_is_refused(end):
    for made in (PLAIN, with_text(PLAIN, {"studio": "here"})):
        with pytest.raises(MediaError):
            read_text(made[: end - len(PLAIN)], "studio")


@given(data=st.binary(max_size=100))
def test_garbage_is_refused(data):
    for hostile in (data, SIGNATURE + data):
        with pytest.raises(MediaError):
            read_text(hostile, "studio")


def test_a_bomb_is_not_inflated():
    bomb = zlib.compress(bytes(50 << 20), 9)
    with pytest.raises(MediaError, match="longer than"):
        read_text(holding(b"zTXt", b"studio\0\0" + bomb), "studio")
    with pytest.raises(MediaError, match="longer than"):
        read_text(holding(b"tEXt", b"studio\0" + b"x" * (MAX_TEXT_BYTES + 1)), "studio")


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (holding(b"zTXt", b"studio\0\0not zlib"), "damaged"),
        (holding(b"iTXt", b"studio\0\0\0\0\0\xff\xfe"), "not valid utf-8"),
        (PLAIN[:33] + struct.pack(">I", 0xFFFFFFF0) + b"iTXt" + PLAIN[33:], "claims"),
        (PLAIN[:33] + chunk(b"tEXt", b"studio\0hi")[:-1] + b"\0" + PLAIN[33:], "checksum"),
    ],
)
def test_damage_is_named(made, words):
    with pytest.raises(MediaError, match=words):
        read_text(made, "studio")
