"""The methods that the plugin adds to `Studio`: `text`, `chat` and `explain`.

Try it: ``print(studio.Studio().chat(model="smollm2").say("What is a decoder?"))``
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, overload

from studio.media import Image, Text
from studio_gpt.conversation import Conversation

if TYPE_CHECKING:
    from studio.api import Studio
    from studio.engine import Event


@dataclass(frozen=True)
class Explanation:
    """The log-probability of each generated token.

    `tokens` has the tokens of the `prompt` and those `written`: `id` and `token` (its text), and for the latter
    `logprob` and the alternatives, `top`; also `text` and `ended`. `attention` is a picture of one head's attention.
    """

    tokens: dict[str, Any]
    attention: Image | None = None


@overload
def text(studio: Studio, prompt: str, *, seed: int | None = None, stream: Literal[False] = False, **inputs: Any
         ) -> Text: ...  # fmt: skip
@overload
def text(studio: Studio, prompt: str, *, seed: int | None = None, stream: Literal[True], **inputs: Any
         ) -> Iterator[str]: ...  # fmt: skip
def text(
    studio: Studio, prompt: str, *, seed: int | None = None, stream: bool = False, **inputs: Any
) -> Text | Iterator[str]:
    """Generate text with the generator `text`, such as ``studio.text("Once", model="smollm2", weights="int8")``.

    With `stream`, yield the text in pieces as it is generated; closing the iterator early cancels the request. `inputs`
    are as for `Studio.submit`; raises as it does.
    """
    if stream:
        return _pieces(studio.stream("text", seed=seed, prompt=prompt, **inputs))
    media = studio.generate("text", seed=seed, prompt=prompt, **inputs)
    assert isinstance(media, Text)
    return media


def _pieces(events: Generator[Event, None, None]) -> Iterator[str]:
    from studio.engine import Delta

    with closing(events):
        for event in events:
            if isinstance(event, Delta):
                yield event.text


def chat(studio: Studio, *, seed: int | None = None, **inputs: Any) -> Conversation:
    """Start a conversation with a language model; `inputs` are those of the generator `text`, for every answer.

    Raises ModelError or UnknownName for a model that is not installed.
    """
    return Conversation(studio, seed=seed, **inputs)


def explain(
    studio: Studio, prompt: str, *, layer: int | str | None = None, head: int | str = 0, seed: int | None = None,
    priority: str = "interactive", client: str = "", time_limit_s: float | None = None, **inputs: Any,
) -> Explanation:  # fmt: skip
    """Generate text and report the log-probability of each token; with a `layer`, also draw the attention of its
    `head`.

    Both are indices from 0. `inputs` are those of the generator `text-explain`; `priority`, `client` and `time_limit_s`
    are as for `Studio.submit`. Raises as it does, before anything runs.
    """
    from studio.engine.ticket import wait

    inputs = studio.generator("text-explain").Inputs.main_names(inputs)
    asked = {"text-explain": {"prompt": prompt, **inputs}}
    if layer is not None:
        fields = studio.generator("text-attention").Inputs.model_fields
        shared = {name: value for name, value in inputs.items() if name in fields}
        asked["text-attention"] = {"prompt": prompt, **shared, "layer": layer, "head": head}
    for name, given in asked.items():
        studio.generator(name).Inputs.parse(given)
    request: dict[str, Any] = {"seed": seed, "priority": priority, "client": client, "time_limit_s": time_limit_s}
    tickets = [studio.submit(name, **request, **given) for name, given in asked.items()]
    tokens, *pictures = wait(tickets)
    return Explanation(json.loads(str(tokens)), next((each for each in pictures if isinstance(each, Image)), None))
