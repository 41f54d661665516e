"""What the plugin adds to `Studio`: `text`, `chat` and `explain`. This module knows nothing of terminals.

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
    """How likely each token was.

    `tokens` has the tokens of the `prompt` and those `written`: `id` and `token` (its text), and for the latter
    `logprob` and the alternatives, `top`; besides `text` and `ended`. `attention` is a picture of where one head looks.
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
    """Write a text with the generator `text`, such as ``studio.text("Once", model="smollm2", weights="int8")``.

    With `stream` it comes piece by piece as it is written, and leaving the iterator early cancels the rest. `inputs`
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
    """Begin a conversation with a language model; `inputs` are those of the generator `text`, for every answer.

    Raises ModelError or UnknownName for a model that is not here.
    """
    return Conversation(studio, seed=seed, **inputs)


def explain(
    studio: Studio, prompt: str, *, layer: int | str | None = None, head: int | str = 0, seed: int | None = None,
    priority: str = "interactive", client: str = "", time_limit_s: float | None = None, **inputs: Any,
) -> Explanation:  # fmt: skip
    """Go on from a prompt and say how likely each token was; with a `layer`, draw where a head of it looks, too.

    Both are counted from 0. `inputs` are those of the generator `text-explain`; `priority`, `client` and `time_limit_s`
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
    told, *drawn = wait(tickets)
    return Explanation(json.loads(str(told)), next((each for each in drawn if isinstance(each, Image)), None))
