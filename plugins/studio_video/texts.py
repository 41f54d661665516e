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

from studio_diffusion.chunks import chunks, notices


class Texts:
    """Encodes texts, and remembers the latest."""

    def __init__(self, tower: CLIPTextModel, tokenizer: CLIPTokenizer, remembered: int = 20_000) -> None:
        """`remembered` is how many texts' states are kept; each takes about 8 KiB."""
        self.tower, self.tokenizer, self.remembered = tower, tokenizer, remembered
        self._kept: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()

    def __call__(self, texts: Sequence[str]) -> list[Tensor]:
        """Token states (n, W) of each text as it stands, begin and end included, cut at the tower's length."""
        ids = self.tokenizer(list(texts), truncation=True, max_length=self.tokenizer.model_max_length).input_ids
        return self._states([tuple(row) for row in ids])

    def read(self, prompts: Sequence[str]) -> list[Tensor]:
        """Token states (n, W) of each prompt, with its weights, in as many chunks as it needs: see `chunks`.

        A state of weight w is w times as far from that of an empty text as it was.
        """
        split = [chunks(prompt, self.tokenizer)[0] for prompt in prompts]
        found = iter(self._states([ids for each in split for ids, _ in each]))
        return [torch.cat([self._weighed(next(found), weights) for _, weights in each]) for each in split]

    def _weighed(self, states: Tensor, weights: Sequence[float]) -> Tensor:
        if set(weights) == {1.0}:
            return states
        begin, end = self.tokenizer("").input_ids
        (empty,) = self._states([(begin, end, *[self.tokenizer.pad_token_id] * (len(weights) - 2))])
        share = torch.tensor(weights, device=states.device)[:, None]
        return torch.lerp(empty.float(), states.float(), share).to(states.dtype)

    @torch.no_grad()
    def _states(self, rows: Sequence[tuple[int, ...]]) -> list[Tensor]:
        new = [row for row in dict.fromkeys(rows) if row not in self._kept]
        if new:
            most = max(map(len, new))
            padded = torch.tensor([[*row, *[self.tokenizer.pad_token_id] * (most - len(row))] for row in new])
            states = self.tower(input_ids=padded.to(self.tower.device)).last_hidden_state
            self._kept |= {row: s[: len(row)].clone() for row, s in zip(new, states, strict=True)}
        found = [self._kept[row] for row in rows]
        while len(self._kept) > self.remembered:
            self._kept.popitem(last=False)
        return found

    def notices(self, prompt: str, name: str) -> tuple[str, ...]:
        """What is to be told of a prompt; `name` says which it is."""
        return notices(prompt, chunks(prompt, self.tokenizer)[1], name, self.tokenizer)
