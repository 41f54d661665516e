"""R's `.rdb` files: what is written there is read, and what is no vector of strings is refused."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from studio.errors import StudioError
from studio_datasets import fetch, novels


def serialised(lines: list[str], kind: int = novels.STRINGS) -> bytes:
    """A character vector as R writes it ("R Internals", 1.8): versions, the native encoding, type, length, strings."""
    parts = [struct.pack(">III", 3, 0x040201, 0x030500), struct.pack(">I", 5), b"UTF-8"]
    parts.append(struct.pack(">II", kind, len(lines)))
    for line in lines:
        data = line.encode()
        parts.append(struct.pack(">II", 0x00040009, len(data)) + data)
    return b"X\n" + b"".join(parts)


def rdb(*blocks: bytes) -> bytes:
    """Blocks as they stand in an `.rdb` file."""
    return b"".join(struct.pack(">I", len(block)) + zlib.compress(block) for block in blocks)


@settings(max_examples=50)
@given(st.lists(st.lists(st.text(st.characters(codec="utf-8"), max_size=9), max_size=5), max_size=4))
def test_vectors_are_read_as_they_were_written(vectors: list[list[str]]) -> None:
    assert [novels.strings(block) for block in novels.blocks(rdb(*map(serialised, vectors)))] == vectors


def test_the_package_holds_one_text_a_vector_and_damage_is_told(tmp_path: Path) -> None:
    file = tmp_path / fetch.NOVELS.folder / novels.DATA
    file.parent.mkdir(parents=True)
    good = serialised(["CHAPTER 1", "", "It is a truth"])
    file.write_bytes(rdb(good, serialised(["Emma"])))
    assert novels.novels(tmp_path) == ["CHAPTER 1\n\nIt is a truth\n", "Emma\n"]
    for bad in (
        rdb(good)[:-3], rdb(good)[:3], struct.pack(">I", 5) + rdb(good)[4:], rdb(serialised(["a"], 13)),
        rdb(good[:-4]), rdb(b"RDX3" + good), b"\0\0\0\5plain",
    ):  # fmt: skip
        file.write_bytes(bad)
        with pytest.raises(StudioError, match="holds no vectors of strings"):
            novels.novels(tmp_path)
