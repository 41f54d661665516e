"""Prefill and decode steps of many requests, and the model with its tokenizer, KV cache pool and prefix cache.

The decoder runs once for all requests of a step; then a token is sampled for each. With speculative decoding (prompt
lookup, Saxena 2023) draft tokens are verified in the same step and accepted as far as they equal the sampled ones, so
the output does not change.

Try it: ``pytest tests/plugins/studio_gpt/test_text.py``
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from studio import devices
from studio.attention import record_backends
from studio.devices.graphs import Graphs
from studio.errors import InputError, StudioError
from studio.finite import NotFinite, Reading
from studio_gpt.config import Config
from studio_gpt.kv_cache import ContiguousKVCache, RequestKVCache, Segment
from studio_gpt.kv_pool import KVCachePool, PooledAttention, PooledKVCache
from studio_gpt.load import ModelFiles
from studio_gpt.model import GPT
from studio_gpt.prefix_cache import BLOCK, PrefixCache
from studio_gpt.quantized_linear import QuantizationReport, Quantizer, kernel_summary
from studio_gpt.sampling import Rule, SampledToken, Sampling, SamplingInput, prompt_lookup, sample_tokens
from studio_gpt.state import CHUNK, TextState
from studio_gpt.tokens import DetokenizedText, Tokens, find_stop


@dataclass
class TextModel:
    """A decoder on its device, its tokenizer, its prefix cache, and the kernels and attention backends that it uses.

    On a GPU the KV caches of all requests are in one `pool`, and decode steps are recorded as CUDA graphs in `graphs`.
    """

    gpt: GPT
    tokens: Tokens
    prefix_cache: PrefixCache
    products: str
    attention: set[str] = field(default_factory=set)
    pool: KVCachePool | None = None
    graphs: Graphs | None = None
    _moved: int = 0  # `pool.moved` when the graphs were recorded

    @property
    def notices(self) -> tuple[str, ...]:
        """Notices about the precision of its weights."""
        packed: QuantizationReport | None = getattr(self.gpt, "packed", None)
        return (packed.missed,) if packed is not None and packed.missed else ()

    @classmethod
    def load(cls, found: ModelFiles, device: str, dtype: str, weights: str) -> TextModel:
        """Load it with a kind of weights (`quantized_linear.KINDS`). Raises WeightsError."""
        gpt, tokens = found.build(device, dtype, Quantizer(weights)), found.tokens()
        kind = (gpt.config, gpt.embed.weight.dtype, gpt.embed.weight.device)
        made = cls(gpt, tokens, PrefixCache(*kind), kernel_summary(gpt))
        if gpt.embed.weight.device.type != "cpu":
            made.pool, made.graphs = KVCachePool(*kind), Graphs(device, gpt)
        return made

    @property
    def config(self) -> Config:
        """The decoder's shape."""
        return self.gpt.config

    def cache(self, room: int) -> RequestKVCache:
        """An empty KV cache for one request of `room` tokens."""
        if self.pool is not None:
            return self.pool.allocate(room)
        return ContiguousKVCache(self.config, room, self.gpt.embed.weight.dtype, self.gpt.embed.weight.device)

    def logits(self, segments: Sequence[Segment]) -> Tensor:
        """The logits of `GPT.decode`. Those of a CUDA graph are overwritten by the next step."""
        step, pool = self.gpt.batch(segments), self.pool
        if self.graphs is None or pool is None or not isinstance(step, PooledAttention) or not step.is_decode:
            return self.gpt.run(step)
        if self._moved != pool.moved:
            self.graphs.drop()
            self._moved = pool.moved
        shape, gpt = step.shape, self.gpt
        return self.graphs.run(shape, lambda sent: gpt.run(PooledAttention(pool, gpt.config, sent, shape)), [step.sent])

    def rule(self, schema: str, ends: Collection[int]) -> Rule | None:
        """Which tokens a JSON Schema allows before one of `ends`; None without a schema.

        Raises InputError for a schema that is not supported.
        """
        if not schema:
            return None
        from studio_gpt.constrain import Constraint, SchemaRule

        if not ends:
            raise InputError(
                "json_schema", "`json_schema` needs a model with an end-of-text token; this model has none"
            )
        return SchemaRule(Constraint.compile(schema, self.tokens.tokenizer, sorted(ends), self.config.vocab))


def step(model: TextModel, states: Sequence[TextState]) -> list[TextState]:
    """The next state of each request: a chunk of its prompt prefilled, or one or more tokens decoded."""
    new: dict[int, TextState] = {}
    states, left = [_with_cache(model, state) for state in states], list(range(len(states)))
    with record_backends() as used:
        while left:
            computed = {i: _num_computed(model, states[i]) for i in left}
            now = _first_of_each_prefix(states, computed)
            stepped = _run(model, [states[i] for i in now], [computed[i] for i in now])
            new.update(zip(now, stepped, strict=True))
            left = [i for i in left if i not in new]
    model.attention |= used
    return [new[i] for i in range(len(states))]


def _with_cache(model: TextModel, state: TextState) -> TextState:
    """The state, with a new KV cache to recompute if its own is in the pool of a model that was evicted."""
    if isinstance(state.cache, PooledKVCache) and state.cache.pool is not model.pool:
        return replace(state, cache=model.cache(state.room), num_computed=0)
    return state


def _first_of_each_prefix(states: Sequence[TextState], computed: Mapping[int, int]) -> list[int]:
    """One request for each next prompt block, so that the others find the block in the prefix cache."""
    first: dict[object, int] = {}
    for i, begin in computed.items():
        state, end = states[i], begin + BLOCK
        first.setdefault(state.tokens[:end] if state.use_prefix_cache and end < state.prompt else i, i)
    return list(first.values())


def _run(model: TextModel, states: Sequence[TextState], computed: Sequence[int]) -> list[TextState]:
    """Run the decoder once for all requests, and sample their tokens."""
    drafts = [_draft(state, begin) for state, begin in zip(states, computed, strict=True)]
    segments = []
    for state, begin, draft in zip(states, computed, drafts, strict=True):
        end = begin + state.next_tokens(begin)
        num_logits = 1 + len(draft) if end == len(state.tokens) else 0
        segments.append(Segment((*state.tokens[begin:end], *draft), begin, state.cache, num_logits))
    logits = model.logits(segments)  # (sum of num_logits, V)
    samplers = _samplers(model, logits, [_inputs(*each) for each in zip(states, segments, drafts, strict=True)])
    new = []
    for state, segment, sample, draft in zip(states, segments, samplers, drafts, strict=True):
        end = segment.start + len(segment.tokens) - len(draft)
        if segment.start < state.prompt:
            model.prefix_cache.store(state.tokens, state.cache, segment.start, min(end, state.prompt))
        if segment.num_logits:
            new.append(_decoded(model, state, sample, draft))
        else:
            new.append(replace(state, position=state.position + 1, num_computed=end, steps=_steps(state, end)))
    return new


Sample = Callable[[int], SampledToken]


def _inputs(state: TextState, segment: Segment, draft: Sequence[int]) -> list[Callable[[], SamplingInput]]:
    """For each position with logits a function that gives its sampling input, given the draft tokens before it."""
    sampling = sampling_of(state)

    def row(place: int) -> SamplingInput:
        tokens = (*state.tokens, *draft[:place]) if place else state.tokens
        mask = None if state.rule is None else state.rule.mask(tokens[state.prompt :])
        return SamplingInput(sampling, tokens, state.prompt, state.seed, mask, state.top)

    return [partial(row, place) for place in range(segment.num_logits)]


def _samplers(model: TextModel, logits: Tensor, rows: Sequence[Sequence[Callable[[], SamplingInput]]]) -> list[Sample]:
    """For each request a function that samples the token of a position. It raises the error of its rule, or NotFinite.

    On a CPU tokens are sampled when they are needed, as draft tokens may be rejected; on a GPU all at once.
    """
    firsts = list(accumulate((len(each) for each in rows), initial=0))
    sampled = _sample_all(logits, [row for each in rows for row in each]) if model.pool is not None else None

    def sample(request: int, place: int) -> SampledToken:
        at = firsts[request] + place
        found = sample_tokens(logits[at : at + 1], [rows[request][place]()])[0] if sampled is None else sampled[at]
        if isinstance(found, StudioError):
            raise found
        if not found.finite:
            Reading(logits[at], "the logits").read()
        return found

    return [partial(sample, request) for request in range(len(rows))]


def _sample_all(logits: Tensor, rows: Sequence[Callable[[], SamplingInput]]) -> list[SampledToken | StudioError]:
    """The token sampled for each row, or the error of its rule, behind a draft token that the rule does not allow."""
    asked: list[SamplingInput | StudioError] = []
    for row in rows:
        try:
            asked.append(row())
        except StudioError as error:
            asked.append(error)
    if not asked:
        return []
    instead = SamplingInput(Sampling(), (), 0, 0)
    chosen = sample_tokens(logits, [instead if isinstance(each, StudioError) else each for each in asked])
    return [each if isinstance(each, StudioError) else found for each, found in zip(asked, chosen, strict=True)]


def _num_computed(model: TextModel, state: TextState) -> int:
    """Tokens whose keys and values are computed, after a look-up in the prefix cache."""
    if state.num_computed + 1 >= len(state.tokens) or not state.use_prefix_cache:
        return state.num_computed
    return model.prefix_cache.load(state.tokens[: state.prompt], state.cache, state.num_computed)


def _draft(state: TextState, num_computed: int) -> list[int]:
    """Draft tokens for speculative decoding."""
    if not state.inputs.lookup or state.top or num_computed + 1 != len(state.tokens):
        return []
    return prompt_lookup(state.tokens, min(state.inputs.lookup, state.room - len(state.tokens) - 1))


def _steps(state: TextState, num_computed: int) -> int:
    """The total number of steps if generation runs until the KV cache is full."""
    return state.position + 1 + -(-(len(state.tokens) - num_computed) // CHUNK) + state.room - len(state.tokens) - 1


def sampling_of(state: TextState) -> Sampling:
    """The request's sampling parameters."""
    i = state.inputs
    return Sampling(
        temperature=i.temperature, top_k=i.top_k, top_p=i.top_p, min_p=i.min_p, repetition=i.repetition_penalty,
        presence=i.presence_penalty, frequency=i.frequency_penalty, bias=tuple(i.logit_bias.items()),
    )  # fmt: skip


def _decoded(model: TextModel, state: TextState, sample: Sample, draft: Sequence[int]) -> TextState:
    """Append sampled tokens, position by position, as long as the draft tokens are accepted."""
    tokens, noted, ended = list(state.tokens), list(state.logprobs), ""
    written = DetokenizedText(state.text, state.start, state.read)
    for place in range(1 + len(draft)):
        chosen = sample(place)
        tokens.append(chosen.token)
        if state.top:
            noted.append((chosen.token, chosen.logprob, chosen.likeliest))
        ended = _end(state, tokens)
        seen = len(written.text)
        written = written.grow(tokens, model.tokens.decode, last=bool(ended))
        if (stop := find_stop(written.text, state.inputs.stop, seen)) is not None:
            written, ended = replace(written, text=written.text[:stop]), "stop"
        if ended or chosen.token != next(iter(draft[place : place + 1]), None):
            break
    notices = state.notices
    if state.rule is not None and ended not in ("end", ""):
        notices += ("the JSON is incomplete: raise `--max-tokens`",)
    if ended == "context":
        notices += (f"generation stopped at the context length of {model.config.context:,} tokens",)
    after = replace(
        state, position=state.position + 1, notices=notices, tokens=tuple(tokens), num_computed=len(tokens) - 1,
        text=written.text, start=written.start, read=written.read, ended=ended, logprobs=tuple(noted),
    )  # fmt: skip
    return replace(after, steps=after.position if ended else _steps(after, after.num_computed) - 1)


def _end(state: TextState, tokens: Sequence[int]) -> str:
    if tokens[-1] in state.ends:
        return "end"
    if len(tokens) - state.prompt >= state.inputs.max_tokens:
        return "length"
    return "context" if len(tokens) >= state.room else ""


def nats_of(model: TextModel, tokens: Sequence[int], first: int) -> float:
    """The negative log-likelihood in nats of the tokens from `first`, at least 1, on.

    Raises NotFinite.
    """
    cache, sums = model.cache(len(tokens)), []
    device = devices.device(str(model.gpt.embed.weight.device))
    targets = device.upload(torch.tensor(tokens))
    for begin in range(0, len(tokens) - 1, CHUNK):
        end = min(begin + CHUNK, len(tokens) - 1)
        num_logits = min(end - begin, max(0, end + 1 - first))
        logits = model.gpt.decode([Segment(tokens[begin:end], begin, cache, num_logits)])  # (num_logits, V)
        if num_logits:
            nats = torch.nn.functional.cross_entropy(logits, targets[end + 1 - num_logits : end + 1], reduction="none")
            sums.append(nats.double().sum())
    summed = sum(torch.stack(sums).tolist())
    if not math.isfinite(summed):
        raise NotFinite("some logits are NaN or infinite")
    return summed


def attention_of(model: TextModel, tokens: Sequence[int], layer: int, head: int) -> Tensor:
    """The attention weights (T, T) of one head of one layer, float32 on the CPU."""
    config, seen = model.config, []

    def hook(at: int, q: Tensor, k: Tensor, v: Tensor) -> None:
        if at == layer:
            keys = k[:, head // (config.heads // config.kv_heads)]
            scores = (q[:, head] @ keys.T).float() / config.head_dim**0.5  # (T, T)
            ones, window = torch.ones_like(scores, dtype=torch.bool), config.windows[layer] or len(tokens)
            seen.append(scores.masked_fill(~(ones.tril() & ones.triu(1 - window)), -torch.inf).softmax(-1))

    model.gpt.decode([Segment(tokens, 0, model.cache(len(tokens)), 0)], hook)
    return seen[0].cpu()
