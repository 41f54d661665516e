"""R's data read back: strings as R writes them, and damage that is told."""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.data import novels

LINES = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=9)


def vector(lines, version=3):
    """A vector of strings as R's `serialize(x, NULL, version = 3)` writes it."""
    made = b"X\n" + struct.pack(">3i", version, 0x040200, 0x030500)
    made += struct.pack(">i", 5) + b"UTF-8" if version == 3 else b""
    made += struct.pack(">2I", 16, len(lines))
    return made + b"".join(struct.pack(">2I", 0x40009, len(each.encode())) + each.encode() for each in lines)


def block(value):
    return struct.pack(">I", len(value)) + zlib.compress(value)


@given(st.lists(LINES, min_size=1, max_size=3), st.sampled_from([2, 3]))
def test_strings_are_read_as_they_were_written(books, version):
    data = b"".join(block(vector(each, version)) for each in books)
    assert [novels.strings(each) for each in novels.blocks(data)] == books


@given(st.integers(0, 60), st.integers(0, 255))
def test_damage_is_a_plain_error_or_another_text(place, byte):
    whole = bytearray(vector(["It is a truth", "universally acknowledged"]))
    whole[place % len(whole)] = byte
    with suppress(ValueError, struct.error):
        assert all(isinstance(each, str) for each in novels.strings(bytes(whole)))


def test_a_block_of_another_length_than_it_says_is_refused():
    value = vector(["a"])
    for said in (len(value) - 1, len(value) + 1, 1 << 31):
        with pytest.raises(ValueError, match="a block"):
            list(novels.blocks(struct.pack(">I", said) + zlib.compress(value)))


def test_lines_become_paragraphs():
    assert (
        novels.paragraphs(["CHAPTER I", "", "", "It was", "a truth.", "", "So."]) == "CHAPTER I\nIt was a truth.\nSo.\n"
    )
