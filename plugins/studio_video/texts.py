"""Texts for the video model: a frozen CLIP text tower as a function, without the padding.

The tower looks back alone, so what stands after a text's end changes nothing before it; token states are therefore
those that the image model is told, and several texts share a pass. Knows nothing of clips.

Try it: `Texts(tower, tokenizer)(["a red apple bouncing"])[0].shape`
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

_REMEMBERED = 20_000  # texts while training; about 8 KiB each


class Texts:
    """Encodes texts, and remembers the latest."""

    def __init__(self, tower: CLIPTextModel, tokenizer: CLIPTokenizer) -> None:
        self.tower, self.tokenizer = tower, tokenizer
        self._kept: OrderedDict[str, Tensor] = OrderedDict()

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> list[Tensor]:
        """Token states (n, W) of each, begin and end included, cut at the tower's length."""
        new = [text for text in dict.fromkeys(texts) if text not in self._kept]
        if new:
            ids = self.tokenizer(new, truncation=True, max_length=self.tokenizer.model_max_length).input_ids
            most = max(map(len, ids))
            padded = torch.tensor([row + [self.tokenizer.pad_token_id] * (most - len(row)) for row in ids])
            states = self.tower(input_ids=padded.to(self.tower.device)).last_hidden_state
            self._kept |= {text: s[: len(row)].clone() for text, s, row in zip(new, states, ids, strict=True)}
        found = [self._kept[text] for text in texts]
        while len(self._kept) > _REMEMBERED:
            self._kept.popitem(last=False)
        return found
