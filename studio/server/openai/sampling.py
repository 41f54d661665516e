"""What chat answers and completions have in common: sampling parameters, limits, tokens with log-probabilities.

Try it: ``pytest tests/studio/server/test_openai_text.py``
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field

from studio.errors import GeneratorFailed, InputError
from studio.media import Media
from studio.server.catalogue import Choice
from studio.server.limits import RequestLimits
from studio.server.openai.shape import Body
from studio.server.running import extras

MAX_TOKENS = 2048  # of an answer, unless the request has its own limit
TOP_LOGPROBS = 20
_PASSED = ("temperature", "top_p", "presence_penalty", "frequency_penalty")


class StreamOptions(BaseModel):
    """Options of a stream."""

    include_usage: bool = False


class SamplingBody(Body):
    """The fields that requests for text share."""

    model: str | None = Field(default=None, max_length=4000)
    n: int = Field(default=1, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: dict[str, float] | None = Field(default=None, max_length=1024)
    stop: str | list[str] | None = None
    seed: int | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def values(self, choice: Choice) -> dict[str, Any]:
        """The inputs of the generator."""
        given = {name: getattr(self, name) for name in _PASSED if getattr(self, name) is not None}
        given |= {"max_tokens": self.max_tokens or MAX_TOKENS, "seed": self.seed}
        if self.logit_bias:
            given["logit_bias"] = self.logit_bias
        if self.stop:
            given["stop"] = [self.stop] if isinstance(self.stop, str) else [each for each in self.stop if each]
        unknown = next((name for name in given if name != "seed" and not choice.takes(name)), None)
        if unknown and unknown != "max_tokens":
            raise InputError(unknown, f"`{choice.name}` has no input `{unknown}`; leave it out")
        return {name: value for name, value in given.items() if name == "seed" or choice.takes(name)} | extras(
            choice, self.extra
        )


def check_amount(body: SamplingBody, texts: Sequence[str], limits: RequestLimits, n: int) -> None:
    """Raise InputError for too many outputs, or too much text."""
    if n > limits.outputs:
        raise InputError("n", f"`n` is {n:,}; it must be from 1 to {limits.outputs}")
    if (length := sum(map(len, texts))) > limits.prompt:
        raise InputError("messages", f"the text has {length:,} characters; the limit is {limits.prompt:,}")


class ExplainedToken(BaseModel):
    """A token with its natural log-probability and, in `top`, the likeliest tokens in its place."""

    id: int
    token: str
    logprob: float = 0.0
    top: list[ExplainedToken] = Field(default_factory=list)


class Explained(BaseModel):
    """The output of a generator that reports log-probabilities."""

    prompt: list[ExplainedToken]
    written: list[ExplainedToken]
    text: str
    ended: str = ""

    @classmethod
    def read(cls, made: Media, name: str) -> Explained:
        """Read an output. Raises GeneratorFailed if it does not have this form."""
        try:
            return cls.model_validate(json.loads(str(made)))
        except ValueError as error:
            raise GeneratorFailed(name, f"its log-probabilities cannot be read: {error}") from error


def chat_logprobs(found: Explained, top: int) -> dict[str, Any]:
    """Log-probabilities in the form of chat answers."""

    def entry(token: ExplainedToken) -> dict[str, Any]:
        return {"token": token.token, "logprob": token.logprob, "bytes": list(token.token.encode("utf-8", "replace"))}

    content = [{**entry(each), "top_logprobs": [entry(one) for one in each.top[:top]]} for each in found.written]
    return {"content": content, "refusal": None}


def completion_logprobs(found: Explained, top: int) -> dict[str, Any]:
    """Log-probabilities in the form of completions; `text_offset` counts the characters of the tokens."""
    offsets, at = [], 0
    for each in found.written:
        offsets.append(at)
        at += len(each.token)
    return {
        "tokens": [each.token for each in found.written],
        "token_logprobs": [each.logprob for each in found.written],
        "top_logprobs": [{one.token: one.logprob for one in each.top[:top]} for each in found.written] if top else None,
        "text_offset": offsets,
    }
