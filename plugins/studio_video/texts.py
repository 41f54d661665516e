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


class Texts:
    """Encodes texts, and remembers the latest."""

    def __init__(self, tower: CLIPTextModel, tokenizer: CLIPTokenizer, remembered: int = 20_000) -> None:
        """`remembered` is how many texts' states are kept; each takes about 8 KiB."""
        self.tower, self.tokenizer, self.remembered = tower, tokenizer, remembered
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
        while len(self._kept) > self.remembered:
            self._kept.popitem(last=False)
        return found

    def cut(self, text: str, name: str) -> tuple[str, ...]:
        """What is to be said of a text that is longer than the tower reads; `name` says which text it is."""
        length = self.tokenizer.model_max_length
        ids = self.tokenizer(text, verbose=False).input_ids  # not verbose: what is cut is told here
        if len(ids) <= length:
            return ()
        words = self.tokenizer.decode(ids[length - 1 : -1]).strip()
        return (f"the {name} is longer than {length - 2} tokens; left out: “{words}”",)
