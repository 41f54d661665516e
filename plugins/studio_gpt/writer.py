"""What `text` does with torch: the model with its tokenizer and known prefixes, and a step of many requests.

The decoder runs once for all requests of a step; then each takes the tokens that its logits say. Guessed tokens run
along and stay as far as they are those that would have been chosen, so guessing never changes a text. This module knows
nothing of the engine.

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
from studio.attention import recorded
from studio.devices.graphs import Graphs
from studio.errors import InputError, StudioError
from studio.finite import NotFinite, Reading
from studio_gpt.cache import Cache, Held, Piece
from studio_gpt.linear import Pack, Packed, fact
from studio_gpt.load import Found
from studio_gpt.model import GPT, Config
from studio_gpt.pool import Pool, Pooled, Span
from studio_gpt.prefixes import BLOCK, Prefixes
from studio_gpt.sampling import Chosen, Row, Rule, Sampling, choose, guess
from studio_gpt.text import CHUNK, Writing
from studio_gpt.tokens import Tokens, Written, find_stop


@dataclass
class TextModel:
    """A decoder on its device, its tokenizer, the prefixes that it knows, and what serves it: the kernels of its matrix
    products, and attention backends. On a GPU requests have their keys and values in one `pool`, and steps in which
    each writes one token are recorded in `graphs`.
    """

    gpt: GPT
    tokens: Tokens
    prefixes: Prefixes
    products: str
    attention: set[str] = field(default_factory=set)
    pool: Pool | None = None
    graphs: Graphs | None = None
    _moved: int = 0  # how often the pool had, when the graphs were recorded

    @property
    def notices(self) -> tuple[str, ...]:
        """What is to be told of how its weights are held."""
        packed: Packed | None = getattr(self.gpt, "packed", None)
        return (packed.missed,) if packed is not None and packed.missed else ()

    @classmethod
    def load(cls, found: Found, device: str, dtype: str, weights: str) -> TextModel:
        """Build it with a kind of weights (`linear.KINDS`). Raises WeightsError."""
        gpt, tokens = found.build(device, dtype, Pack(weights)), found.tokens()
        kind = (gpt.config, gpt.embed.weight.dtype, gpt.embed.weight.device)
        made = cls(gpt, tokens, Prefixes(*kind), fact(gpt))
        if gpt.embed.weight.device.type != "cpu":
            made.pool, made.graphs = Pool(*kind), Graphs(device, gpt)
        return made

    @property
    def config(self) -> Config:
        """The decoder's shape."""
        return self.gpt.config

    def cache(self, room: int) -> Held:
        """An empty cache for one request of so many tokens."""
        if self.pool is not None:
            return self.pool.span(room)
        return Cache(self.config, room, self.gpt.embed.weight.dtype, self.gpt.embed.weight.device)

    def logits(self, pieces: Sequence[Piece]) -> Tensor:
        """Those of `GPT.decode`; where a device has recorded such a step, they hold until the next one."""
        step, pool = self.gpt.together(pieces), self.pool
        if self.graphs is None or pool is None or not isinstance(step, Pooled) or not step.decodes:
            return self.gpt.run(step)
        if self._moved != pool.moved:
            self.graphs.drop()
            self._moved = pool.moved
        shape, gpt = step.shape, self.gpt
        return self.graphs.run(shape, lambda sent: gpt.run(Pooled(pool, gpt.config, sent, shape)), [step.sent])

    def rule(self, schema: str, ends: Collection[int]) -> Rule | None:
        """What a JSON Schema allows to be written before one of `ends`; None without one.

        Raises InputError for one that cannot be held to.
        """
        if not schema:
            return None
        from studio_gpt.constrain import Constraint, SchemaRule

        if not ends:
            raise InputError("json_schema", "`json_schema` needs a model with a token that ends a text; this has none")
        return SchemaRule(Constraint.compile(schema, self.tokens.tokenizer, sorted(ends), self.config.vocab))


def step(model: TextModel, states: Sequence[Writing]) -> list[Writing]:
    """The next state of each: a chunk of its prompt read, or one or more tokens written."""
    made: dict[int, Writing] = {}
    states, left = [_at_home(model, state) for state in states], list(range(len(states)))
    with recorded() as used:
        while left:
            known = {i: _known(model, states[i]) for i in left}
            now = _first_of_alike(states, known)
            moved = _move(model, [states[i] for i in now], [known[i] for i in now])
            made.update(zip(now, moved, strict=True))
            left = [i for i in left if i not in made]
    model.attention |= used
    return [made[i] for i in range(len(states))]


def _at_home(model: TextModel, state: Writing) -> Writing:
    """The state; with a new cache, which is computed again, if its own is in the pool of a model that was dropped."""
    if isinstance(state.cache, Span) and state.cache.pool is not model.pool:
        return replace(state, cache=model.cache(state.room), known=0)
    return state


def _first_of_alike(states: Sequence[Writing], known: Mapping[int, int]) -> list[int]:
    """Of those that are to read the same next block one alone, so that the others find what it computed."""
    first: dict[object, int] = {}
    for i, begin in known.items():
        state, end = states[i], begin + BLOCK
        first.setdefault(state.tokens[:end] if state.shares and end < state.prompt else i, i)
    return list(first.values())


def _move(model: TextModel, states: Sequence[Writing], known: Sequence[int]) -> list[Writing]:
    """Run the decoder once for all and take what it says."""
    guesses = [_guess(state, begin) for state, begin in zip(states, known, strict=True)]
    pieces = []
    for state, begin, guessed in zip(states, known, guesses, strict=True):
        end = begin + state.ahead(begin)
        wanted = 1 + len(guessed) if end == len(state.tokens) else 0
        pieces.append(Piece((*state.tokens[begin:end], *guessed), begin, state.cache, wanted))
    logits = model.logits(pieces)  # (sum of wanted, V)
    chosen = _choosing(model, logits, [_rows(*each) for each in zip(states, pieces, guesses, strict=True)])
    made = []
    for state, piece, choice, guessed in zip(states, pieces, chosen, guesses, strict=True):
        read = piece.start + len(piece.tokens) - len(guessed)
        if piece.start < state.prompt:
            model.prefixes.keep(state.tokens, state.cache, piece.start, min(read, state.prompt))
        if piece.wanted:
            made.append(_write(model, state, choice, guessed))
        else:
            made.append(replace(state, position=state.position + 1, known=read, steps=_steps(state, read)))
    return made


Choice = Callable[[int], Chosen]


def _rows(state: Writing, piece: Piece, guessed: Sequence[int]) -> list[Callable[[], Row]]:
    """For each place with logits what says by what its token is chosen, if the guesses before it are right."""
    sampling = sampling_of(state)

    def row(place: int) -> Row:
        tokens = (*state.tokens, *guessed[:place]) if place else state.tokens
        mask = None if state.rule is None else state.rule.mask(tokens[state.prompt :])
        return Row(sampling, tokens, state.prompt, state.seed, mask, state.top)

    return [partial(row, place) for place in range(piece.wanted)]


def _choosing(model: TextModel, logits: Tensor, rows: Sequence[Sequence[Callable[[], Row]]]) -> list[Choice]:
    """For each request a function that says what is chosen at a place, or raises what its rule raises, or NotFinite.

    On a CPU it chooses when it is asked, as guesses may be wrong; on a GPU all is chosen at once.
    """
    firsts = list(accumulate((len(each) for each in rows), initial=0))
    known = _all_chosen(logits, [row for each in rows for row in each]) if model.pool is not None else None

    def choice(request: int, place: int) -> Chosen:
        at = firsts[request] + place
        found = choose(logits[at : at + 1], [rows[request][place]()])[0] if known is None else known[at]
        if isinstance(found, StudioError):
            raise found
        if not found.finite:
            Reading(logits[at], "the logits").read()
        return found

    return [partial(choice, request) for request in range(len(rows))]


def _all_chosen(logits: Tensor, rows: Sequence[Callable[[], Row]]) -> list[Chosen | StudioError]:
    """What is chosen by each row; for one behind a guess that its rule does not allow, what the rule raises."""
    asked: list[Row | StudioError] = []
    for row in rows:
        try:
            asked.append(row())
        except StudioError as error:
            asked.append(error)
    if not asked:
        return []
    instead = Row(Sampling(), (), 0, 0)
    chosen = choose(logits, [instead if isinstance(each, StudioError) else each for each in asked])
    return [each if isinstance(each, StudioError) else found for each, found in zip(asked, chosen, strict=True)]


def _known(model: TextModel, state: Writing) -> int:
    """Tokens of which keys and values are there, with what others have computed meanwhile."""
    if state.known + 1 >= len(state.tokens) or not state.shares:
        return state.known
    return model.prefixes.take(state.tokens[: state.prompt], state.cache, state.known)


def _guess(state: Writing, known: int) -> list[int]:
    if not state.inputs.lookup or state.top or known + 1 != len(state.tokens):
        return []
    return guess(state.tokens, min(state.inputs.lookup, state.room - len(state.tokens) - 1))


def _steps(state: Writing, known: int) -> int:
    """Steps in all, if nothing ends the text before its room is used up."""
    return state.position + 1 + -(-(len(state.tokens) - known) // CHUNK) + state.room - len(state.tokens) - 1


def sampling_of(state: Writing) -> Sampling:
    """How the request's tokens are chosen."""
    i = state.inputs
    return Sampling(
        temperature=i.temperature, top_k=i.top_k, top_p=i.top_p, min_p=i.min_p, repetition=i.repetition_penalty,
        presence=i.presence_penalty, frequency=i.frequency_penalty, bias=tuple(i.logit_bias.items()),
    )  # fmt: skip


def _write(model: TextModel, state: Writing, choice: Choice, guessed: Sequence[int]) -> Writing:
    """Take the tokens that are chosen, place by place, as long as the guesses are right."""
    tokens, noted, ended = list(state.tokens), list(state.logprobs), ""
    written = Written(state.text, state.start, state.read)
    for place in range(1 + len(guessed)):
        chosen = choice(place)
        tokens.append(chosen.token)
        if state.top:
            noted.append((chosen.token, chosen.logprob, chosen.likeliest))
        ended = _end(state, tokens)
        seen = len(written.text)
        written = written.grow(tokens, model.tokens.decode, last=bool(ended))
        if (stop := find_stop(written.text, state.inputs.stop, seen)) is not None:
            written, ended = replace(written, text=written.text[:stop]), "stop"
        if ended or chosen.token != next(iter(guessed[place : place + 1]), None):
            break
    notices = state.notices
    if state.rule is not None and ended not in ("end", ""):
        notices += ("the JSON is cut off before its end: allow it more with `--max-tokens`",)
    if ended == "context":
        notices += (f"the text ends where the context of {model.config.context:,} tokens is full",)
    after = replace(
        state, position=state.position + 1, notices=notices, tokens=tuple(tokens), known=len(tokens) - 1,
        text=written.text, start=written.start, read=written.read, ended=ended, logprobs=tuple(noted),
    )  # fmt: skip
    return replace(after, steps=after.position if ended else _steps(after, after.known) - 1)


def _end(state: Writing, tokens: Sequence[int]) -> str:
    if tokens[-1] in state.ends:
        return "end"
    if len(tokens) - state.prompt >= state.inputs.max_tokens:
        return "length"
    return "context" if len(tokens) >= state.room else ""


def nats_of(model: TextModel, tokens: Sequence[int], first: int) -> float:
    """Nats (minus natural logarithms) of the probabilities of the tokens from `first`, at least 1, on, summed.

    Raises NotFinite.
    """
    cache, sums = model.cache(len(tokens)), []
    device = devices.device(str(model.gpt.embed.weight.device))
    due = device.upload(torch.tensor(tokens))
    for begin in range(0, len(tokens) - 1, CHUNK):
        end = min(begin + CHUNK, len(tokens) - 1)
        wanted = min(end - begin, max(0, end + 1 - first))
        logits = model.gpt.decode([Piece(tokens[begin:end], begin, cache, wanted)])  # (wanted, V)
        if wanted:
            nats = torch.nn.functional.cross_entropy(logits, due[end + 1 - wanted : end + 1], reduction="none")
            sums.append(nats.double().sum())
    summed = sum(torch.stack(sums).tolist())
    if not math.isfinite(summed):
        raise NotFinite("some logits are NaN or infinite")
    return summed


def attention_of(model: TextModel, tokens: Sequence[int], layer: int, head: int) -> Tensor:
    """How much each token looks at each, (T, T) float32 on the CPU, by one head of one layer."""
    config, seen = model.config, []

    def watch(at: int, q: Tensor, k: Tensor, v: Tensor) -> None:
        if at == layer:
            keys = k[:, head // (config.heads // config.kv_heads)]
            scores = (q[:, head] @ keys.T).float() / config.head_dim**0.5  # (T, T)
            ones, window = torch.ones_like(scores, dtype=torch.bool), config.windows[layer] or len(tokens)
            seen.append(scores.masked_fill(~(ones.tril() & ones.triu(1 - window)), -torch.inf).softmax(-1))

    model.gpt.decode([Piece(tokens, 0, model.cache(len(tokens)), 0)], watch)
    return seen[0].cpu()
