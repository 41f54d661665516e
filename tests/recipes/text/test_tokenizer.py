"""The tokenizer that is learnt: no text is unknown, transformers reads it as BPE is defined, END is the largest id."""

from __future__ import annotations

import json
import unicodedata
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from recipes.text import tokenizer
from recipes.text.tokenizer import BEGIN, END, PATTERN

from .conftest import WORDS

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def known(character: str) -> bool:
    """Whether every library's Unicode tables have it: those differ by years."""
    return unicodedata.ucd_3_2_0.category(character) not in ("Cn", "Cs", "Co", "Cc")


TEXTS = st.text(st.characters(codec="utf-8", max_codepoint=0x2FFFF).filter(known) | st.sampled_from(" \t\n'#ap红s1"))


def normal(text: str) -> str:
    """NFC, white space as one space, lower case letter by letter (so a final sigma is as any other)."""
    text = regex.sub(r"\s+", " ", unicodedata.normalize("NFC", text))
    return "".join(character.lower() for character in text)


class Reference:
    """Byte-level BPE as defined (Sennrich et al. 2016; Radford et al. 2019): slow, from the two files alone."""

    def __init__(self, folder: Path) -> None:
        self.ids = json.loads((folder / "vocab.json").read_text("utf-8"))
        lines = (folder / "merges.txt").read_text("utf-8").splitlines()[1:]
        self.rank = {tuple(line.split(" ")): rank for rank, line in enumerate(lines)}
        self.letter = letters_of_bytes()

    def word(self, piece: str) -> list[str]:
        parts = [self.letter[byte] for byte in piece.encode()]
        parts[-1] += "</w>"
        while pairs := [(self.rank[p], p) for p in pairwise(parts) if p in self.rank]:
            first, second = min(pairs)[1]
            made: list[str] = []
            for part in parts:
                if made and made[-1] == first and part == second:
                    made[-1] = first + second
                else:
                    made.append(part)
            parts = made
        return parts

    def __call__(self, text: str) -> list[int]:
        pieces = regex.findall(PATTERN, normal(text))
        return [self.ids[part] for piece in pieces for part in self.word(piece)]


def letters_of_bytes() -> dict[int, str]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the rest follow from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + n) for n, byte in enumerate(rest)}


def body(tokens: Any, text: str) -> list[int]:
    ids = tokens(text).input_ids
    assert (ids[0], ids[-1]) == (tokens.bos_token_id, tokens.eos_token_id)
    return ids[1:-1]


def test_every_byte_has_both_forms_and_the_ends_are_last(tokenizer_folder: Path, tokens: Any) -> None:
    ids = json.loads((tokenizer_folder / "vocab.json").read_text("utf-8"))
    assert sorted(ids.values()) == list(range(len(ids)))
    assert {*ALPHABET, *(f"{letter}</w>" for letter in ALPHABET)} <= ids.keys()
    assert (ids[BEGIN], ids[END]) == (len(ids) - 2, len(ids) - 1)
    assert (tokens.bos_token_id, tokens.eos_token_id) == (len(ids) - 2, len(ids) - 1)
    assert tokens.pad_token_id == tokens.eos_token_id
    assert len(tokens) == len(ids)
    assert tokens.model_max_length == 48


@given(text=TEXTS)
def test_nothing_is_unknown_and_all_comes_back(tokens: Any, text: str) -> None:
    """Decoding sets spaces between words, so those alone may differ."""
    ids = body(tokens, text)
    assert tokens.unk_token_id not in ids
    assert tokens.decode(ids).replace(" ", "") == normal(text).replace(" ", "")


@given(text=TEXTS)
def test_transformers_reads_it_as_defined(tokenizer_folder: Path, tokens: Any, text: str) -> None:
    assert body(tokens, text) == Reference(tokenizer_folder)(text)


@pytest.mark.parametrize(
    "text", [*WORDS[:5], "Apple APPLES  pear's ##", "é e\u0301 İ ß Σας", "🍎👩‍🚀 \u200b\ufeff\x00"]
)
def test_transformers_reads_these_as_defined(tokenizer_folder: Path, tokens: Any, text: str) -> None:
    assert body(tokens, text) == Reference(tokenizer_folder)(text)


@pytest.mark.parametrize("word", ["apple", "octopus", "一个红苹果", "don", "##"])
def test_what_is_frequent_becomes_one_token(tokens: Any, word: str) -> None:
    assert len(body(tokens, word)) == 1
    assert body(tokens, word.upper()) == body(tokens, f"  {word}\n")


def test_the_vocabulary_has_its_bound(tmp_path: Path) -> None:
    tokenizer.train(WORDS, tmp_path, vocabulary=520)
    ids = json.loads((tmp_path / "vocab.json").read_text("utf-8"))
    merges = (tmp_path / "merges.txt").read_text("utf-8").splitlines()[1:]
    assert len(ids) == 520
    assert len(merges) == 520 - 512 - 2
    assert {merge.replace(" ", "") for merge in merges} < ids.keys()


def test_the_same_texts_give_the_same_bytes(tokenizer_folder: Path, tmp_path: Path) -> None:
    tokenizer.train(WORDS, tmp_path)
    for file in tmp_path.iterdir():
        assert file.read_bytes() == (tokenizer_folder / file.name).read_bytes()
