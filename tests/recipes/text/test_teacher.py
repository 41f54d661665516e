"""The text tower at any batching, and its teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from recipes.text import teacher
from recipes.text import train as train_text

TEXTS = ["octopus", "", "a red apple", "一个红苹果", "red " * 60, "a", "apples and pears, don't you know", "cat", "dog"]


@pytest.mark.parametrize("parts", [1, 2, 6, 20])
def test_embedding_together_is_one_by_one_in_the_given_order(tokens: Any, tower: Any, parts: int) -> None:
    with torch.no_grad():
        made = train_text.embed(tower, tokens, TEXTS, parts)
        for text, row in zip(TEXTS, made, strict=True):
            ids = tokens(text, truncation=True, max_length=48, return_tensors="pt").input_ids
            torch.testing.assert_close(row, tower(input_ids=ids).text_embeds[0], rtol=1e-5, atol=1e-5)
    assert made.dtype == torch.float32
    assert (torch.cdist(made, made) + torch.eye(len(made)) > 1e-3).all(), "unlike texts land apart"


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One random layer of MiniLM's width, in transformers' layout."""
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("minilm")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "a",
        "red",
        "apple",
        "apples",
        "pear",
        "cat",
        "dog",
        "octopus",
    ]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizer(vocab={word: index for index, word in enumerate(words)}).save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = BertConfig(vocab_size=len(words), hidden_size=teacher.WIDTH, num_hidden_layers=1,
                            num_attention_heads=4, intermediate_size=64)  # fmt: skip
        BertModel(config).save_pretrained(folder)
    return folder


def test_the_teacher_embeds_in_the_given_order(minilm: Path) -> None:
    texts = ["octopus", "a red apple", "a", "dog cat dog cat dog", "red " * 90]
    made = teacher.embed(minilm, texts, batch=2)
    assert made.shape == (5, teacher.WIDTH)
    assert made.dtype == torch.float16
    torch.testing.assert_close(made.float().norm(dim=1), torch.ones(5), rtol=0, atol=2e-3)
    for text, row in zip(texts, made, strict=True):
        (alone,) = teacher.embed(minilm, [text])
        assert float(alone.float() @ row.float()) > 0.999
    assert float(made[0].float() @ made[1].float()) < 0.99
