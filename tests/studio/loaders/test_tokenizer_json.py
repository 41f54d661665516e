"""A `tokenizer.json` from elsewhere: the known ones load, and none takes far more time or memory than its size."""

from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio.errors import WeightsError
from studio.loaders import tokenizer_json
from studio.loaders.regex import fault

PLAIN: dict[str, Any] = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
    "pre_tokenizer": None, "post_processor": None, "decoder": None,
    "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
}  # fmt: skip
KNOWN = [
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'ll)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\s+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*",
    r"\d{1,3}(?=(?:\d{3})*\b)", r" ?[^(\s|[.,!?…。，、।۔،])]+", r"[一-龥぀-ゟ゠-ヿ]+", r"[0-9][0-9][0-9]", r" {2,}",
    r"<\|startoftext\|>|<\|endoftext\|>|'s|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", r"(?<=\d)(?=(\d{3})+(?!\d))",
    r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}&&[^\p{Han}]]*[\p{Ll}&&[^\p{Han}]]+", r"((?<=\S)(?=\p{P})|\p{N})",
]  # fmt: skip
"""The expressions of GPT-2, Llama 3, GPT-4o, DeepSeek, InternLM, Bloom and others, some of them cut."""
ENDLESS = [
    r"(a+)+$", r"(a|aa)+b", r"(a|a?)+b", r"(.*)*x", r".*.*x", r"([a-z]+)*\d", r"(?:a?){30}a{30}", r"a*a*a*b",
    r"(x+x+)+y", r"(?>(a+)+)b", r"(?=(a+)+b)", r"\1", r"(a{1,200}){1,200}b", r"(a?){200}b", r"((a{100}){100}){100}",
    r"(?<x>a\g<x>?b)", r"(a?a?a?a?a?)+$", r"a{2,}{2,}b", "(a|a)" * 20 + "x", "a?" * 25 + "a" * 25, "[" * 50, "(" * 50,
    r"a{999999}", "(", ")", "[a", "\\", "*",
]  # fmt: skip


@pytest.mark.parametrize("pattern", KNOWN)
def test_the_expressions_of_known_tokenizers_are_sound(pattern: str) -> None:
    assert fault(pattern) is None
    tokenizer_json.build(changed(pre_tokenizer=split(pattern)), Path("tokenizer.json")).encode("It's 12,345 cats")


@pytest.mark.parametrize("pattern", ENDLESS)
def test_expressions_that_may_search_for_ever_are_refused(pattern: str) -> None:
    assert fault(pattern)
    for place in ({"pre_tokenizer": split(pattern)}, {"normalizer": replaced(pattern)}, {"decoder": replaced(pattern)}):
        with pytest.raises(WeightsError, match="regular expression"):
            tokenizer_json.check(changed(**place), Path("tokenizer.json"))


@given(st.text(r"ab()[]{}|*+?\.^$,:=!<>-P12", max_size=40))
def test_any_text_is_an_expression_or_is_refused(pattern: str) -> None:
    assert fault(pattern) is None or isinstance(fault(pattern), str)


def changed(**changes: Any) -> dict[str, Any]:
    return {**PLAIN, **changes}


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def replaced(pattern: str, content: str = "x") -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def string(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


def model(**changes: Any) -> dict[str, Any]:
    return {"model": {**PLAIN["model"], **changes}}


GROWING: list[dict[str, Any]] = [
    {"normalizer": {"type": "Sequence", "normalizers": [string("a", "a" * 16)] * 2}},
    {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": [string("a", "aa")] * 7}]}},
    {"normalizer": string("a", "x" * 100)},
    {"normalizer": replaced("a", "x" * 100)},
    {"normalizer": string("", "x")},
    {"normalizer": {"type": "Prepend", "prepend": "x" * 50_000}},
    {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}] * 100}},
    {"normalizer": {"type": "Precompiled", "precompiled_charsmap": b64encode(bytes(4) + b"x" * 100).decode()}},
    {"decoder": {"type": "Sequence", "decoders": [string("a", "aa")] * 8}},
    {"decoder": {"type": "WordPiece", "prefix": "#" * 1000, "cleanup": True}},
    {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}] * 4}},
    {"post_processor": {"type": "Sequence", "processors": [{"type": "TemplateProcessing", "single": [
        {"Sequence": {"id": "A", "type_id": 0}}] * 9, "pair": [], "special_tokens": {}}] * 3}},
    {"post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [0] * 10**5, "tokens": ["<s>"]}}}},
    {"padding": {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                 "pad_type_id": 0, "pad_token": "a"}},
    {"added_tokens": [{"id": 1, "content": "x" * 10_000}]},
    model(vocab={"x" * 10_000: 0}), model(end_of_word_suffix="x" * 1000),
    {"model": {"type": "Unigram", "vocab": [["x" * 10_000, 0.0]]}},
    {"model": {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a", "max_input_chars_per_word": 10**9}},
]  # fmt: skip


@pytest.mark.parametrize("change", GROWING)
def test_what_grows_without_bound_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(WeightsError, match=r"`tokenizer\.json` is rejected"):
        tokenizer_json.check(changed(**change), Path("tokenizer.json"))


@pytest.mark.parametrize(
    "change",
    [{"normalizer": "x"}, {"model": 3}, {"normalizer": {"type": "Python"}}, {"added_tokens": [3]}, {"decoder": [1]},
     {"post_processor": {"type": "TemplateProcessing"}}, {"padding": {"strategy": 3, "pad_to_multiple_of": "x"}}],
)  # fmt: skip
def test_what_is_not_a_tokenizer_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(WeightsError):
        tokenizer_json.build(changed(**change), Path("tokenizer.json"))


def test_those_that_ship_are_sound(tmp_path: Path) -> None:
    shipped = list((Path(__file__).parents[3] / "plugins").rglob("tokenizer.json"))
    assert shipped
    for path in shipped:
        tokenizer_json.load(path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(PLAIN))
    assert tokenizer_json.load(tmp_path / "tokenizer.json").encode("aa").ids == [0, 0]
