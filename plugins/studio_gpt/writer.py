"""What `text` does with torch: the model with its tokenizer and known prefixes, and a step of many requests.

The decoder runs once for all requests of a step; then each takes the tokens that its logits say. Guessed tokens run
along and stay as far as they are those that would have been chosen, so guessing never changes a text. This module knows
nothing of the engine.

Try it: ``pytest tests/plugins/studio_gpt/test_text.py``
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from studio.attention import recorded
from studio_gpt.load import Found
from studio_gpt.model import GPT, Cache, Config, Piece
from studio_gpt.prefixes import Prefixes
from studio_gpt.sampling import Sampling, choose, guess
from studio_gpt.text import CHUNK, Logprob, Writing
from studio_gpt.tokens import Tokens, Written, find_stop


@dataclass
class TextModel:
    """A decoder on its device, its tokenizer, the prefixes that it knows, and the attention backends that served it."""

    gpt: GPT
    tokens: Tokens
    prefixes: Prefixes
    attention: set[str] = field(default_factory=set)

    @classmethod
    def load(cls, found: Found, device: str, dtype: str) -> TextModel:
        """Build it. Raises WeightsError."""
        gpt, tokens = found.build(device, dtype), found.tokens()
        return cls(gpt, tokens, Prefixes(gpt.config, gpt.embed.weight.dtype, gpt.embed.weight.device))

    @property
    def config(self) -> Config:
        """The decoder's shape."""
        return self.gpt.config

    def cache(self, room: int) -> Cache:
        """An empty cache for one request of so many tokens."""
        return Cache(self.config, room, self.gpt.embed.weight.dtype, self.gpt.embed.weight.device)


def step(model: TextModel, states: Sequence[Writing], top: int = 0) -> list[Writing]:
    """The next state of each: a chunk of its prompt read, or one or more tokens written."""
    made: dict[int, Writing] = {}
    left = list(range(len(states)))
    with recorded() as used:
        while left:
            now, left = _first_of_alike(states, left)
            moved = _move(model, [states[i] for i in now], top)
            made.update(zip(now, moved, strict=True))
    model.attention |= used
    return [made[i] for i in range(len(states))]


def _first_of_alike(states: Sequence[Writing], left: Sequence[int]) -> tuple[list[int], list[int]]:
    """Of requests that read alike chunks one comes first; the others find what it computed."""
    now: dict[object, int] = {}
    for i in left:
        state = states[i]
        reads = state.known + 1 < len(state.tokens)
        now.setdefault(state.tokens[: state.known + CHUNK] if reads else i, i)
    first = set(now.values())
    return [i for i in left if i in first], [i for i in left if i not in first]


def _move(model: TextModel, states: Sequence[Writing], top: int) -> list[Writing]:
    known = [_known(model, state) for state in states]
    guesses = [_guess(state, known_) for state, known_ in zip(states, known, strict=True)]
    pieces = []
    for state, begin, guessed in zip(states, known, guesses, strict=True):
        chunk = state.tokens[begin : begin + CHUNK]
        wanted = 1 + len(guessed) if begin + len(chunk) == len(state.tokens) else 0
        pieces.append(Piece((*chunk, *guessed), begin, state.cache, wanted))
    logits = model.gpt.decode(pieces).split([piece.wanted for piece in pieces])
    made = []
    for state, piece, scores, guessed in zip(states, pieces, logits, guesses, strict=True):
        read = min(piece.start + CHUNK, len(state.tokens))
        if read <= state.prompt:
            model.prefixes.keep(state.tokens, state.cache, piece.start, read)
        if not piece.wanted:
            made.append(replace(state, position=state.position + 1, known=read, steps=_steps(state, read)))
        else:
            made.append(_write(model, state, scores, guessed, top))
    return made


def _known(model: TextModel, state: Writing) -> int:
    """Tokens of which keys and values are there, with what others have computed meanwhile."""
    if state.known + 1 >= len(state.tokens):
        return state.known
    return model.prefixes.take(state.tokens[: state.prompt], state.cache, state.known)


def _guess(state: Writing, known: int) -> list[int]:
    if not state.inputs.lookup or known + 1 != len(state.tokens):
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


def _write(model: TextModel, state: Writing, logits: Tensor, guessed: Sequence[int], top: int) -> Writing:
    """Take the tokens that the logits (1 + guessed, vocab) say, as long as the guesses are right."""
    tokens, noted, ended = list(state.tokens), list(state.logprobs), ""
    written = Written(state.text, state.start, state.read)
    sampling = sampling_of(state)
    for place, scores in enumerate(logits):
        token = choose(scores, sampling, tokens, state.prompt, state.seed)
        tokens.append(token)
        if top:
            noted.append(_note(scores, token, top))
        ended = _end(model, state, tokens)
        seen = len(written.text)
        written = written.grow(tokens, model.tokens.decode, last=bool(ended))
        if (stop := find_stop(written.text, state.inputs.stop, seen)) is not None:
            written, ended = replace(written, text=written.text[:stop]), "stop"
        if ended or token != next(iter(guessed[place : place + 1]), None):
            break
    notices = state.notices
    if ended == "context":
        notices += (f"the text ends where the context of {model.config.context:,} tokens is full",)
    after = replace(
        state, position=state.position + 1, notices=notices, tokens=tuple(tokens), known=len(tokens) - 1,
        text=written.text, start=written.start, read=written.read, ended=ended, logprobs=tuple(noted),
    )  # fmt: skip
    return replace(after, steps=after.position if ended else _steps(after, after.known) - 1)


def _end(model: TextModel, state: Writing, tokens: Sequence[int]) -> str:
    if tokens[-1] in model.tokens.ends:
        return "end"
    if len(tokens) - state.prompt >= state.inputs.max_tokens:
        return "length"
    return "context" if len(tokens) >= state.room else ""


def _note(logits: Tensor, token: int, top: int) -> Logprob:
    """The token's log-probability by the model itself, before penalties and temperature, and the likeliest ones."""
    logprobs = logits.log_softmax(-1)
    values, places = logprobs.topk(min(top, len(logprobs)))
    return token, float(logprobs[token]), tuple(zip(places.tolist(), values.tolist(), strict=True))
