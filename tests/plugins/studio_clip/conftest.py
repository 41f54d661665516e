"""A tokenizer learnt from a few words, a tiny text tower that fits it, and captions of a few pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from studio.devices import torch_setup

torch_setup.prepare()

WORDS = ["a red apple", "一个红苹果", "octopus", "apples and pears, don't you know", "## 1234 ##"] * 3


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from recipes.text import tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.train(WORDS, folder)
    return folder


@pytest.fixture(scope="session")
def tokens(tokenizer_folder: Path) -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(tokenizer_folder)


@pytest.fixture(scope="session")
def tower(tokens: Any) -> Any:
    """Two layers of 32, projected to 16, in evaluation mode; every weight is random, biases and norms too."""
    import torch
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    size = len(tokens)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPTextModelWithProjection(CLIPTextConfig(
            vocab_size=size, hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=48, hidden_act="gelu", projection_dim=16,
            bos_token_id=size - 2, eos_token_id=size - 1, pad_token_id=size - 1,
        ))  # fmt: skip
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return model.eval()


@pytest.fixture
def captions() -> list[str]:
    return ["octopus", "apple", "pear", "cat", "dog", "red car", "blue car", "house", "tree"]
