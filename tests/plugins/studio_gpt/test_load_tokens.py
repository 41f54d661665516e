"""Tokenizers from disk: prompts are cut, padded, begun and ended as transformers and llama.cpp do it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, processors

from studio.errors import WeightsError
from studio_gpt.constrain import Constraint
from studio_gpt.load import find

from .conftest import LINES, VOCAB, train_tokenizer
from .test_load import KINDS, wide_llama, write_gguf

TEXT = f"{LINES[0]} <s>{LINES[2]}</s>"


@pytest.fixture
def folder(checkpoints: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoints("llama")[0], tmp_path / "model"))


def write(folder: Path, tokenizer: Tokenizer, **config: Any) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def transformers_ids(folder: Path, text: str) -> list[int]:
    import transformers

    ids: list[int] = transformers.AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    return ids


@pytest.mark.parametrize("setting", ["truncation", "padding"])
def test_prompts_are_neither_cut_nor_padded(setting: str, folder: Path) -> None:
    tokenizer = train_tokenizer()
    whole = tokenizer.encode(TEXT).ids
    if setting == "truncation":
        tokenizer.enable_truncation(8)
    else:
        tokenizer.enable_padding(length=4 * len(whole), pad_id=2, pad_token="<pad>")
    write(folder, tokenizer)
    assert find(folder).tokens().encode(TEXT) == whole == transformers_ids(folder, TEXT)


@pytest.mark.parametrize("flags", [{}, {"add_bos_token": True}, {"add_bos_token": False}, {"add_eos_token": True}])
@pytest.mark.parametrize("single", [None, "<s> $A", "<s> $A </s>"])
def test_what_stands_around_a_text_is_as_transformers_has_it(
    flags: dict[str, bool], single: str | None, folder: Path
) -> None:
    tokenizer = train_tokenizer()
    if single:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    write(folder, tokenizer, bos_token="<s>", eos_token="</s>", **flags)
    assert find(folder).tokens().encode(TEXT) == transformers_ids(folder, TEXT)


def test_named_tokens_are_special_though_tokenizer_json_has_them_as_words(folder: Path) -> None:
    content = json.loads(train_tokenizer().to_str())
    content["added_tokens"] = []
    write(folder, Tokenizer.from_str(json.dumps(content)), bos_token="<s>", eos_token="</s>")
    tokens = find(folder).tokens()
    assert tokens.encode(TEXT) == transformers_ids(folder, TEXT)
    assert tokens.decode([0, *tokens.encode("a"), 1]) == "a"


def test_a_pad_token_beyond_the_embedding_is_never_needed(folder: Path) -> None:
    tokenizer = train_tokenizer()
    tokenizer.add_special_tokens(["[PAD]"])
    assert tokenizer.token_to_id("[PAD]") == VOCAB
    write(folder, tokenizer, pad_token="[PAD]")
    tokens = find(folder).tokens()
    assert tokens.encode(TEXT) == tokenizer.encode(TEXT).ids
    assert tokens.decode(tokens.encode("a [PAD] b")) == "a [PAD] b", "it is text"
    assert Constraint.compile({"enum": ["a"]}, tokens.tokenizer, 1, VOCAB).start().mask().any()


def test_a_token_beyond_the_embedding_that_is_needed_is_refused(folder: Path) -> None:
    tokenizer = train_tokenizer()
    tokenizer.add_special_tokens(["<|turn|>"])
    write(folder, tokenizer, chat_template="<|turn|>{{ messages[0].content }}")
    with pytest.raises(WeightsError, match="has 321 tokens, but the model only 320"):
        find(folder).tokens()
    tokenizer = train_tokenizer()
    tokenizer.add_tokens([AddedToken("word", normalized=False)])
    write(folder, tokenizer)
    with pytest.raises(WeightsError, match="has 321 tokens, but the model only 320"):
        find(folder).tokens()


def gguf_tokens(path: Path, tokenizer: Tokenizer, **more: Any) -> Any:
    with torch.no_grad():
        write_gguf(path, wide_llama(), tokenizer, KINDS.F16, **more)
    return find(path).tokens()


@pytest.mark.parametrize(("pre", "add", "begins"), [
    ("llama-bpe", None, True), ("llama3", None, True), ("llama-bpe", True, True), ("llama-bpe", False, False),
    ("qwen2", None, False), ("qwen2", True, True), ("gpt-2", None, False),
])  # fmt: skip
def test_texts_of_a_gguf_file_begin_as_llama_cpp_has_it(
    pre: str, add: bool | None, begins: bool, tokenizer: Any, tmp_path: Path
) -> None:
    more = {} if add is None else {"add_bos_token": add}
    template = "{{ messages[0].content }}"
    tokens = gguf_tokens(tmp_path / "a.gguf", tokenizer, pre=pre, bos_token_id=0, chat_template=template, **more)
    assert tokens.encode("a")[:1] == ([0] if begins else tokens.encode("a", plain=False)[:1])
    assert (tokens.first == 0) is begins
    ending = gguf_tokens(tmp_path / "b.gguf", tokenizer, pre=pre, bos_token_id=0, add_eos_token=True, **more)
    assert ending.encode("a")[-1] == 1


@pytest.mark.parametrize(("more", "words"), [
    ({"add_bos_token": True}, "bos_token_id` is missing"), ({"eot_token_id": 10**6}, "the tokens 0 to 319"),
    ({"pre": None}, "pre-tokenizer None"),
])  # fmt: skip
def test_what_a_gguf_file_leaves_open_is_refused(more: Any, words: str, tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=words):
        gguf_tokens(tmp_path / "a.gguf", tokenizer, **more)


def with_turns() -> Tokenizer:
    """Its vocabulary has names of ends of turns, as Llama 3 and ChatML have them."""
    content = json.loads(train_tokenizer().to_str())
    for number, name in ((300, "<|eot_id|>"), (301, "<|im_end|>"), (302, "<|other|>")):
        old = next(word for word, at in content["model"]["vocab"].items() if at == number)
        content["model"]["vocab"][name] = content["model"]["vocab"].pop(old)
        content["model"]["merges"] = [pair for pair in content["model"]["merges"] if "".join(pair) != old
                                      and old not in pair]  # fmt: skip
    return Tokenizer.from_str(json.dumps(content))


def test_texts_of_a_gguf_file_end_at_every_end_of_a_turn(tmp_path: Path) -> None:
    tokens = gguf_tokens(tmp_path / "a.gguf", with_turns(), eom_token_id=302)
    assert tokens.ends == {1, 300, 301, 302}
    assert tokens.decode([300, 301]) == "", "they are control tokens, whatever kind the file says"


def test_a_tokenizer_beside_a_gguf_file_has_its_ends_and_template(tmp_path: Path) -> None:
    with_turns().save(str(tmp_path / "tokenizer.json"))
    tokens = gguf_tokens(tmp_path / "a.gguf", with_turns(), bos_token_id=0, eot_token_id=302, chat_template="x")
    assert tokens.ends == {1, 300, 301, 302}
    assert tokens.chat_template == "x"
    assert tokens.specials == {"bos_token": "<s>", "eos_token": "</s>"}
