"""A conversation with the generator `text`: earlier turns are stored, and given to the model with each message.

Try it: ``print(studio.Studio().chat(model="smollm2").say("What is a decoder?"))``
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from studio.models import Models

if TYPE_CHECKING:
    from studio.api import Studio
    from studio.engine import Event

GENERATOR = "text"
CONVERSATION_INPUTS = ("prompt", "chat", "turns")  # inputs that the conversation sets


class Conversation:
    """A conversation so far: `turns` has the user's messages and the model's answers, in turn."""

    def __init__(self, studio: Studio, *, seed: int | None = None, **inputs: Any) -> None:
        """`inputs` are those of `text` for every answer, and options of `Studio.submit`.

        With a `seed`, equal turns give equal answers. Raises ModelError or UnknownName for a model that is not
        installed.
        """
        if model := inputs.get("model"):
            Models(studio.home).path(model)
        self.turns: list[str] = []
        self._studio, self._inputs, self._seed = studio, inputs, seed

    def say(self, message: str) -> str:
        """The complete answer to a message. Raises as `Studio.submit`; a failed turn is removed."""
        return "".join(self.stream(message)).strip()

    def stream(self, message: str, watch: Callable[[Event], None] = lambda _: None) -> Generator[str, None, None]:
        """Yield the answer to a message in pieces as they are generated; `watch` is called with every event of the
        request.

        Closing the iterator early, or an interrupt, stops the answer and keeps its text so far. Raises as `say`.
        """
        from studio.engine import Delta, Failed

        seed = None if self._seed is None else self._seed + len(self.turns) // 2
        asked = {**self._inputs, "prompt": message, "chat": True, "turns": list(self.turns)}
        ticket = self._studio.submit(GENERATOR, seed=seed, stream=True, **asked)
        said = ""
        try:
            for event in ticket.events():
                watch(event)
                if isinstance(event, Failed):
                    said = ""
                    raise event.error
                if isinstance(event, Delta):
                    said += event.text
                    yield event.text
        finally:
            if not ticket.done:
                ticket.cancel()
            if said.strip():
                self.turns += [message, said.strip()]
