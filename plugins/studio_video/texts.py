"""TextEncoder for the video model: a frozen CLIP text tower as a function, without the padding.

The tower is causal, so padding after a text's end does not change the states before it; token states are therefore
those that the image model gets, and several texts share a forward pass.

Try it: `TextEncoder(tower, tokenizer)(["a red apple bouncing"])[0].shape`
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from studio.diffusion.chunks import chunks, notices


class TextEncoder:
    """Encodes texts, with an LRU cache."""

    def __init__(self, tower: CLIPTextModel, tokenizer: CLIPTokenizer, cache_size: int = 20_000) -> None:
        """`cache_size` is the number of cached texts; each takes about 8 KiB."""
        self.tower, self.tokenizer, self.cache_size = tower, tokenizer, cache_size
        self._cache: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()

    def __call__(self, texts: Sequence[str]) -> list[Tensor]:
        """Text encoder states (n, W) of each text, with begin and end, truncated to the encoder's length."""
        ids = self.tokenizer(list(texts), truncation=True, max_length=self.tokenizer.model_max_length).input_ids
        return self._states([tuple(row) for row in ids])

    def read(self, prompts: Sequence[str]) -> list[Tensor]:
        """Text encoder states (n, W) of each prompt, with its weights and in chunks (see chunks.py).

        Weight w multiplies a state's difference from that of the empty text.
        """
        split = [chunks(prompt, self.tokenizer)[0] for prompt in prompts]
        found = iter(self._states([ids for each in split for ids, _ in each]))
        return [torch.cat([self._weighted(next(found), weights) for _, weights in each]) for each in split]

    def _weighted(self, states: Tensor, weights: Sequence[float]) -> Tensor:
        if set(weights) == {1.0}:
            return states
        begin, end = self.tokenizer("").input_ids
        (empty,) = self._states([(begin, end, *[self.tokenizer.pad_token_id] * (len(weights) - 2))])
        share = torch.tensor(weights, device=states.device)[:, None]
        return torch.lerp(empty.float(), states.float(), share).to(states.dtype)

    @torch.no_grad()
    def _states(self, rows: Sequence[tuple[int, ...]]) -> list[Tensor]:
        new = [row for row in dict.fromkeys(rows) if row not in self._cache]
        if new:
            most = max(map(len, new))
            padded = torch.tensor([[*row, *[self.tokenizer.pad_token_id] * (most - len(row))] for row in new])
            states = self.tower(input_ids=padded.to(self.tower.device)).last_hidden_state
            self._cache |= {row: s[: len(row)].clone() for row, s in zip(new, states, strict=True)}
        found = [self._cache[row] for row in rows]
        while len(self._cache) > self.cache_size:
            self._cache.popitem(last=False)
        return found

    def notices(self, prompt: str, name: str) -> tuple[str, ...]:
        """The notices for a prompt; `name` is `prompt` or `negative prompt`."""
        return notices(prompt, chunks(prompt, self.tokenizer)[1], name, self.tokenizer)
