"""Sampling of the next token: penalties, filters and a draw, pure functions of logits (N, vocab), for N rows at once.

They equal the logits processors of transformers, in the same order: penalties and biases, masks, temperature, top-k,
top-p, min-p. The draw uses a number in [0, 1) that depends only on the seed and the token's position (`uniform`), so
the output is the same whether a step is batched, resumed or speculative.

A rule (`Rule`) says which tokens are allowed next, such as those that keep the output valid for a JSON Schema. Prompt
lookup (`prompt_lookup`) drafts tokens for speculative decoding.

Try it: ``python -c "from studio_gpt.sampling import *; print(Sampling(top_p=0.9))"``
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor

import studio
from studio import devices
from studio.errors import StudioError

LARGEST = 1e30  # bound of logits, so that their sums and quotients stay finite
COLD = 1e-3  # below this temperature logits are shifted by their maximum
LIKELIEST = 256  # tokens among which a nucleus is looked for first
STEPS = 1 << 52  # resolution of probabilities that are summed as integers


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters. The defaults are greedy decoding.

    Attributes:
        temperature: above 1 flattens the distribution, below 1 sharpens it; 0 is greedy decoding.
        top_k: sample from the k most likely tokens; 0 is all.
        top_p: sample from the most likely tokens that together have this probability (nucleus, arXiv:1904.09751).
        min_p: drop tokens below this fraction of the highest probability (arXiv:2407.01082).
        repetition: divides positive logits of tokens in prompt and output, and multiplies negative ones
            (CTRL, arXiv:1909.05858).
        presence, frequency: subtracted from the logits of generated tokens, once, and once per occurrence.
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


class Rule(Protocol):
    """Which tokens are allowed next."""

    def mask(self, written: Sequence[int]) -> Tensor | None:
        """The tokens allowed after the generated tokens `written`: bool (up to vocab,), on the CPU; None is all.

        The result depends only on `written`, which may be longer or shorter than in the last call.
        """


@dataclass(frozen=True)
class SamplingInput:
    """The inputs of sampling one token, besides its logits.

    Attributes:
        tokens: the tokens before it; the first `prompt` are the prompt, the rest are generated.
        seed: the request's seed.
        mask: the allowed tokens, from a `Rule`.
        top: how many most likely tokens to report.
    """

    sampling: Sampling
    tokens: Sequence[int]
    prompt: int
    seed: int
    mask: Tensor | None = None
    top: int = 0


@dataclass(frozen=True)
class SampledToken:
    """A token, whether its logits were finite, and, with `top`, its log-probability (before penalties and temperature)
    and the most likely tokens with theirs.
    """

    token: int
    finite: bool = True
    logprob: float = 0.0
    likeliest: tuple[tuple[int, float], ...] = ()


def penalise_repetition(logits: Tensor, seen: Tensor, penalty: float | Tensor) -> Tensor:
    """Apply a repetition penalty, a float64 factor, to the indices `seen` of flat logits."""
    found = logits[seen].double()
    penalised = torch.where(found < 0, found * penalty, found / penalty).clamp(-LARGEST, LARGEST)
    return logits.index_copy(0, seen, penalised.to(logits.dtype))


def apply_masks(logits: Tensor, masks: Sequence[Tensor | None]) -> Tensor:
    """Mask out the tokens that each row's mask does not allow, and those beyond it. Raises StudioError if none is
    left.
    """
    if all(mask is None for mask in masks):
        return logits
    whole = torch.zeros(logits.shape, dtype=torch.bool)  # (N, V)
    for row, mask in zip(whole, masks, strict=True):
        if mask is None:
            row.fill_(True)
        else:
            row[: len(mask)] = mask[: len(row)]
    if not whole.any(-1).all():
        raise StudioError(
            "no token is allowed after the text so far", hint="use a less strict schema, or raise `--max-tokens`"
        )
    return logits.masked_fill(~_upload(whole, logits.device), -torch.inf)


def keep_top_k(logits: Tensor, k: int | Tensor, most: int) -> Tensor:
    """Mask out all but the k most likely tokens, and those as likely as the last of them.

    `k` is from 1 to `most` for all rows, or one per row (N, 1); a row with k = 0 is unchanged.
    """
    likeliest = logits.topk(most).values  # (..., most)
    if isinstance(k, int):
        return logits.masked_fill(logits < likeliest[..., k - 1 : k], -torch.inf)
    last = likeliest.gather(-1, (k - 1).clamp_min(0))  # (N, 1)
    return logits.masked_fill((logits < last) & (k > 0), -torch.inf)


def keep_top_p(logits: Tensor, p: float | Tensor) -> Tensor:
    """Mask out the least likely tokens while the rest has probability `p`; the most likely token always stays.

    `p` is for all rows, or one per row (N, 1); infinity masks out nothing. A single row on a CPU is sorted only if its
    nucleus is not among the most likely tokens: to sort 50,000 logits takes longer than a small model.
    """
    if isinstance(p, float) and logits.numel() == logits.shape[-1] and logits.device.type == "cpu":
        last = _last_of_nucleus(logits, p)
        if last is not None:
            return logits.masked_fill(logits < last, -torch.inf)
    ordered, order = logits.sort(descending=True, stable=True)
    probabilities = ordered.softmax(-1)
    out = _sums(probabilities) - probabilities >= p
    out[..., 0] = False
    return logits.masked_fill(torch.zeros_like(out).scatter(-1, order, out), -torch.inf)


def _last_of_nucleus(logits: Tensor, p: float) -> Tensor | None:
    """The lowest logit that top-p keeps, (); None if it is beyond the most likely tokens or equals a masked one."""
    likeliest = logits.topk(min(LIKELIEST, logits.shape[-1])).values.flatten()  # (K,), descending
    probabilities = (likeliest - logits.logsumexp(-1)).exp()
    kept = max(int((probabilities.cumsum(-1) - probabilities < p).sum()), 1)
    if kept == len(likeliest) or likeliest[kept] == likeliest[kept - 1]:
        return None
    return likeliest[kept - 1]


def keep_min_p(logits: Tensor, p: float | Tensor) -> Tensor:
    """Mask out tokens with less than `p` times the highest probability; `p` is for all rows or one per row (N, 1)."""
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < p * probabilities.amax(-1, keepdim=True), -torch.inf)


def apply_temperature(logits: Tensor, temperature: float | Tensor, cold: bool) -> Tensor:
    """Logits divided by a temperature above 0, one for all rows or one per row (N, 1) float64.

    At the smallest temperatures, which are `cold`, all but the most likely tokens are masked out.
    """
    if not cold:
        return logits / (temperature if isinstance(temperature, float) else temperature.to(logits.dtype))
    # A float32 would overflow; a double of 5e-324 divides 0 to 0 and all else to -inf.
    shifted = ((logits.double() - logits.amax(-1, keepdim=True)) / temperature).to(logits.dtype)
    if isinstance(temperature, float):
        return shifted
    return torch.where(temperature < COLD, shifted, logits / temperature.to(logits.dtype))


def draw(logits: Tensor, u: float | Tensor) -> Tensor:
    """Sample the token of each row (N, 1) by inverse transform: at `u` in [0, 1), (N, 1) or for all rows. A token that
    is masked out is never drawn.
    """
    sums = _sums(logits.double().softmax(-1))  # (N, V)
    whole = sums[..., -1:]
    at = torch.searchsorted(sums, u * whole, right=True)
    last = torch.searchsorted(
        sums, whole.contiguous()
    )  # the first place with the whole sum: never past the likely ones
    return torch.minimum(at, last)


def _sums(probabilities: Tensor) -> Tensor:
    """Cumulative sums of rows. On a GPU they are sums of integers, as float sums depend on its order of execution."""
    if probabilities.device.type == "cpu":
        return probabilities.cumsum(-1)
    return (probabilities.double() * STEPS).round().long().cumsum(-1).double() / STEPS


def uniform(seed: int, place: int) -> float:
    """A number in [0, 1) for the token at a position; equal for equal seeds and positions, on every machine."""
    return (studio.Rng(seed).fork(place).seed >> 11) / (1 << 53)


class _Numbers:
    """Numbers of many rows, uploaded to the device in one tensor."""

    def __init__(self) -> None:
        self._numbers: list[float] = []
        self._sent: Tensor | None = None

    def add(self, numbers: Sequence[float]) -> slice:
        """Add numbers; return where they will be."""
        begin = len(self._numbers)
        self._numbers += numbers
        return slice(begin, len(self._numbers))

    def send(self, device: torch.device) -> None:
        """Upload them; no more are added afterwards."""
        if self._numbers:
            self._sent = _upload(torch.tensor(self._numbers, dtype=torch.float64), device)

    def get(self, where: slice) -> Tensor:
        """The numbers of a slice, (n,) float64 on the device."""
        assert self._sent is not None
        return self._sent[where]


def _upload(host: Tensor, device: torch.device) -> Tensor:
    return devices.device(str(device)).upload(host)


@dataclass(frozen=True)
class _Changes:
    """Indices of flat logits, and a number for each."""

    places: slice
    numbers: slice

    @classmethod
    def of(cls, found: Iterable[tuple[int, float]], numbers: _Numbers) -> _Changes | None:
        """None if there are none."""
        pairs = list(found)
        if not pairs:
            return None
        return cls(numbers.add([place for place, _ in pairs]), numbers.add([number for _, number in pairs]))

    def get(self, numbers: _Numbers) -> tuple[Tensor, Tensor]:
        """Both on the device."""
        return numbers.get(self.places).long(), numbers.get(self.numbers)


class _Plan:
    """The processing of logits of rows: all parameters are first collected into one tensor, uploaded, and then used."""

    def __init__(self, rows: Sequence[SamplingInput], vocab: int) -> None:
        self.rows, self.vocab, self.numbers = rows, vocab, _Numbers()
        self.repeated = _Changes.of(self._each(_repeated), self.numbers)
        self.counted = _Changes.of(self._each(_counted), self.numbers)
        self.biased = _Changes.of(self._each(_biased), self.numbers)
        self.drawn = [row.sampling.temperature != 0 for row in rows]
        each = [row.sampling for row in rows]
        self.cold = any(0 < s.temperature < COLD for s in each)
        self.temperature = self._add([s.temperature or 1.0 for s in each])
        self.ks = [s.top_k if 0 < s.top_k < vocab else 0 for s in each]
        self.top_k = self._add(self.ks)
        self.top_p = self._add([s.top_p if s.top_p < 1 else math.inf for s in each])
        self.min_p = self._add([s.min_p for s in each])
        self.u = self._add(
            [uniform(row.seed, len(row.tokens) - row.prompt) if row.sampling.temperature else 0.0 for row in rows]
        )

    def _each(self, changes: Callable[[SamplingInput], Iterable[tuple[int, float]]]) -> Iterator[tuple[int, float]]:
        return ((i * self.vocab + token, x) for i, row in enumerate(self.rows) for token, x in changes(row))

    def _add(self, numbers: Sequence[float]) -> float | slice:
        """Add one number per row; the number of a single row stays a float."""
        return float(numbers[0]) if len(numbers) == 1 else self.numbers.add(numbers)

    def _get(self, number: float | slice, dtype: torch.dtype) -> Any:
        """The added numbers: a float, or (N, 1) in a dtype."""
        return number if isinstance(number, float) else self.numbers.get(number).to(dtype)[:, None]

    def tokens(self, logits: Tensor) -> Tensor:
        """The sampled tokens (N,) of logits (N, V) float32."""
        self.numbers.send(logits.device)
        logits = self._adjusted(logits.clamp(-LARGEST, LARGEST))
        if not any(self.drawn):
            return logits.argmax(-1)
        scaled = apply_temperature(logits, self._get(self.temperature, torch.float64), self.cold)
        if any(self.ks):
            k = self._get(self.top_k, torch.long)
            scaled = keep_top_k(scaled, int(k) if isinstance(k, float) else k, max(self.ks))
        if any(row.sampling.top_p < 1 for row in self.rows):
            scaled = keep_top_p(scaled, self._get(self.top_p, scaled.dtype))
        if any(row.sampling.min_p > 0 for row in self.rows):
            scaled = keep_min_p(scaled, self._get(self.min_p, scaled.dtype))
        drawn = draw(scaled, self._get(self.u, torch.float64))[:, 0]
        if all(self.drawn):
            return drawn
        likeliest = logits.argmax(-1)
        return torch.where(_upload(torch.tensor(self.drawn), logits.device), drawn, likeliest)

    def _adjusted(self, logits: Tensor) -> Tensor:
        """Logits after penalties, biases and masks."""
        if self.repeated or self.counted or self.biased:
            flat = logits.flatten()
            if self.repeated:
                flat = penalise_repetition(flat, *self.repeated.get(self.numbers))
            for changes in (self.counted, self.biased):
                if changes:
                    places, added = changes.get(self.numbers)
                    flat = flat.index_add(0, places, added.to(flat.dtype))
            logits = flat.view(logits.shape)
        return apply_masks(logits, [row.mask for row in self.rows])


def _repeated(row: SamplingInput) -> Iterable[tuple[int, float]]:
    penalty = row.sampling.repetition
    return () if penalty == 1 else ((token, penalty) for token in sorted(set(row.tokens)))


def _counted(row: SamplingInput) -> Iterable[tuple[int, float]]:
    presence, frequency = row.sampling.presence, row.sampling.frequency
    if presence == frequency == 0:
        return ()
    counts = Counter(row.tokens[row.prompt :])
    return ((token, -(presence + frequency * count)) for token, count in counts.items())


def _biased(row: SamplingInput) -> Iterable[tuple[int, float]]:
    return ((token, min(max(added, -LARGEST), LARGEST)) for token, added in row.sampling.bias)


def sample_tokens(logits: Tensor, rows: Sequence[SamplingInput]) -> list[SampledToken]:
    """Sample a token for each row of logits (N, vocab) float32, independently of the other rows.

    On a GPU the parameters of all rows are uploaded in one tensor, or two with masks, and all results are downloaded at
    once, which is the only synchronisation. Raises StudioError if a mask allows no token.
    """
    tokens, sums = _Plan(rows, logits.shape[-1]).tokens(logits), logits.sum(-1)  # (N,) each
    most = min(max(row.top for row in rows), logits.shape[-1])
    if not most and logits.device.type == "cpu":  # on a CPU rows are sampled one by one, so each operator counts
        both = zip(tokens.tolist(), sums.tolist(), strict=True)
        return [SampledToken(token, math.isfinite(total)) for token, total in both]
    found = [tokens[:, None], sums[:, None]]
    if most:
        logprobs = logits.log_softmax(-1)
        found += [logprobs.gather(-1, tokens[:, None]), *logprobs.topk(most)]  # (N, 1), (N, most) twice
    made = []
    for row, (token, total, *more) in zip(rows, _read(found), strict=True):
        likeliest = tuple(zip(map(int, more[1 + most :]), more[1 : 1 + most], strict=True))[: row.top]
        made.append(SampledToken(int(token), math.isfinite(total), *((more[0], likeliest) if row.top else ())))
    return made


def _read(found: Sequence[Tensor]) -> list[list[float]]:
    """The rows of tensors (N, …), joined, with one synchronisation."""
    if found[0].device.type == "cpu":
        return [[*chain(*parts)] for parts in zip(*(each.tolist() for each in found), strict=True)]
    rows: list[list[float]] = devices.download(torch.cat([each.double() for each in found], 1)).tolist()
    return rows


def prompt_lookup(tokens: Sequence[int], most: int, longest: int = 3) -> list[int]:
    """Draft tokens for speculative decoding: up to `most` that followed the last 3 tokens (else 2) earlier in the text.

    Prompt lookup decoding (Saxena 2023): it costs no forward pass, and is often right where a text repeats itself.
    """
    for length in range(min(longest, len(tokens) - 1), 1, -1):
        end = list(tokens[-length:])
        for at in range(len(tokens) - length - 1, -1, -1):
            if tokens[at] == end[0] and list(tokens[at : at + length]) == end:
                return list(tokens[at + length : at + length + most])
    return []
