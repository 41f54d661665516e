"""Which token comes next: penalties, filters and a draw, each a pure function of logits (vocab,).

They are what transformers' processors of the same names do, in the same order: penalties and biases, what is allowed,
temperature, top-k, top-p, min-p. The draw takes a number in [0, 1) that depends on the seed and the token's place alone
(`uniform`), so a text is the same however its steps were made: packed with others, resumed, or guessed ahead.

A rule (`Rule`) says which tokens may come next, such as those that keep a text within a JSON Schema. This module knows
nothing of models or texts.

Try it: ``python -c "from studio_gpt.sampling import *; print(Sampling(top_p=0.9))"``
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

import studio
from studio.errors import StudioError

LARGEST = 1e30  # logits after biases and penalties, so that sums and quotients of theirs stay finite
COLD = 1e-3  # the temperature below which logits are measured from the likeliest


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen. The defaults change nothing but that the likeliest is taken.

    Attributes:
        temperature: above 1 flattens, below sharpens; 0 takes the likeliest.
        top_k: only the k likeliest; 0 is all.
        top_p: only the likeliest that together have this probability (nucleus sampling, arXiv:1904.09751).
        min_p: only those at least this probable in relation to the likeliest (arXiv:2407.01082).
        repetition: logits of tokens that stand in prompt or text are divided by it (multiplied, if below 0)
            (CTRL, arXiv:1909.05858).
        presence, frequency: taken from the logits of tokens that were written, once, and each time.
        bias: added to the logits of these tokens.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    bias: tuple[tuple[int, float], ...] = ()

    @property
    def plain(self) -> bool:
        """Whether logits stay as they are before the filters."""
        return self.repetition == 1 and self.presence == self.frequency == 0 and not self.bias


class Rule(Protocol):
    """What may be written."""

    def mask(self, written: Sequence[int]) -> Tensor | None:
        """Which tokens may follow those that were written: bool (up to vocab,), on the CPU; None is all.

        It depends on `written` alone, which may be longer or shorter than the last time.
        """


def penalise_repetition(logits: Tensor, tokens: Sequence[int], penalty: float) -> Tensor:
    """Make tokens that have been seen less likely by a factor."""
    if penalty == 1 or not tokens:
        return logits
    seen = torch.tensor(sorted(set(tokens)), device=logits.device)
    found = logits[seen].double()
    weighed = torch.where(found < 0, found * penalty, found / penalty).clamp(-LARGEST, LARGEST)
    return logits.index_copy(0, seen, weighed.to(logits.dtype))


def penalise_counts(logits: Tensor, written: Sequence[int], presence: float, frequency: float) -> Tensor:
    """Make tokens that were written less likely by a sum."""
    if presence == frequency == 0 or not written:
        return logits
    counts = Counter(written)
    seen = torch.tensor(list(counts), device=logits.device)
    taken = torch.tensor([presence + frequency * count for count in counts.values()], device=logits.device)
    return logits.index_add(0, seen, -taken.to(logits.dtype))


def add_bias(logits: Tensor, bias: Sequence[tuple[int, float]]) -> Tensor:
    """Add to the logits of single tokens."""
    if not bias:
        return logits
    tokens, values = zip(*bias, strict=True)
    added = torch.tensor(values, dtype=torch.double).clamp(-LARGEST, LARGEST).to(logits)
    return logits.index_add(0, torch.tensor(tokens, device=logits.device), added)


def allow(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Rule out what the mask does not allow, and tokens beyond it. Raises StudioError if nothing is left."""
    if mask is None:
        return logits
    whole = torch.zeros(len(logits), dtype=torch.bool)
    whole[: len(mask)] = mask[: len(logits)]
    if not whole.any():
        raise StudioError(
            "no token may follow what is written", hint="ask for something less strict, or for more tokens"
        )
    return logits.masked_fill(~whole.to(logits.device), -torch.inf)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Rule out all but the k likeliest, and what is as likely as the last of them."""
    if not 0 < k < len(logits):
        return logits
    return logits.masked_fill(logits < logits.topk(k).values[-1], -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Rule out the least likely as long as what is left has the probability `p`; the likeliest always stays."""
    if p >= 1:
        return logits
    ordered, order = logits.sort(descending=True, stable=True)
    before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
    out = before >= p
    out[0] = False
    return logits.masked_fill(torch.zeros_like(out).scatter(0, order, out), -torch.inf)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Rule out what has less than `p` times the probability of the likeliest."""
    if p <= 0:
        return logits
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < p * probabilities.max(), -torch.inf)


def heat(logits: Tensor, temperature: float) -> Tensor:
    """Logits over a temperature above 0. At the smallest ones all but the likeliest are ruled out."""
    if temperature < COLD:  # a float32 would overflow; a double of 5e-324 divides 0 to 0 and all else to -inf
        return ((logits.double() - logits.max()) / temperature).to(logits.dtype)
    return logits / temperature


def draw(logits: Tensor, u: float) -> int:
    """The token at `u` in [0, 1) of the summed probabilities; one that is ruled out is never drawn."""
    sums = logits.double().softmax(-1).cumsum(-1)
    at = int(torch.searchsorted(sums, u * sums[-1], right=True))
    last = int(torch.searchsorted(sums, sums[-1]))  # the first place that has the whole sum: never past the likely ones
    return min(at, last)


def uniform(seed: int, place: int) -> float:
    """A number in [0, 1) for the token at a place of a text; equal for equal seeds and places, on every machine."""
    return (studio.Rng(seed).fork(place).seed >> 11) / (1 << 53)


def adjust(logits: Tensor, s: Sampling, tokens: Sequence[int], prompt: int, rule: Rule | None = None) -> Tensor:
    """Logits after penalties, biases and the rule; of `tokens` the first `prompt` were given, the rest written."""
    if not s.plain:
        logits = penalise_repetition(logits, tokens, s.repetition)
        logits = penalise_counts(logits, tokens[prompt:], s.presence, s.frequency)
        logits = add_bias(logits, s.bias)
    return logits if rule is None else allow(logits, rule.mask(tokens[prompt:]))


def choose(logits: Tensor, s: Sampling, tokens: Sequence[int], prompt: int, seed: int, rule: Rule | None = None) -> int:
    """The token that follows `tokens`, of logits (vocab,) float32. Raises StudioError if the rule allows none."""
    logits = adjust(logits.clamp(-LARGEST, LARGEST), s, tokens, prompt, rule)
    if s.temperature == 0:
        return int(logits.argmax())
    scaled = heat(logits, s.temperature)
    logits = keep_min_p(keep_top_p(keep_top_k(scaled, s.top_k), s.top_p), s.min_p)
    return draw(logits, uniform(seed, len(tokens) - prompt))


def guess(tokens: Sequence[int], most: int, longest: int = 3) -> list[int]:
    """Up to `most` tokens that may follow: those that followed the last 3 (else 2) when they last stood in the text.

    Prompt lookup (Saxena 2023): free of cost, and often right where a text repeats what was said.
    """
    for length in range(min(longest, len(tokens) - 1), 1, -1):
        end = list(tokens[-length:])
        for at in range(len(tokens) - length - 1, -1, -1):
            if tokens[at] == end[0] and list(tokens[at : at + length]) == end:
                return list(tokens[at + length : at + length + most])
    return []
