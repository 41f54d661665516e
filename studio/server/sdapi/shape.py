"""The forms that the routes of the WebUI interface share: errors, names of samplers, and what is running.

Try it: ``curl http://127.0.0.1:7860/sdapi/v1/samplers``
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from studio.engine import Event, Progress, Ticket
from studio.engine.events import Preview
from studio.errors import UnknownName
from studio.media import Image
from studio.recipe import WEBUI_SAMPLERS
from studio.server.catalogue import Choice
from studio.server.errors import HttpProblem

_SCHEDULES = (" automatic", " karras", " exponential", " uniform")  # that older clients append to a sampler's name
AUTOMATIC = "Automatic"


def error_body(problem: HttpProblem) -> dict[str, Any]:
    """An error as the WebUI writes it."""
    return {"error": problem.code, "detail": problem.message, "body": "", "errors": problem.message}


def samplers_of(choice: Choice) -> dict[str, str]:
    """The samplers that a generator accepts: its own names, by the WebUI's names."""
    if not choice.takes("sampler"):
        return {}
    wrong = choice.generator.Inputs.problems
    return {name: own for own, name in WEBUI_SAMPLERS.items() if not wrong({"sampler": own, **choice.values})}


def sampler_of(choice: Choice, name: str) -> str | None:
    """The generator's name of a sampler; None for the default. Raises UnknownName."""
    plain = name.strip().lower()
    for schedule in _SCHEDULES:
        plain = plain.removesuffix(schedule)
    known = samplers_of(choice)
    if plain in ("", AUTOMATIC.lower()) or not known:
        return None
    found = next((own for shown, own in known.items() if plain in (shown.lower(), own)), None)
    if found is None:
        raise UnknownName("sampler", name[:60], known)
    return found


@dataclass
class WebuiRun:
    """The requests of one client that the WebUI interface is running: for `progress` and `interrupt`."""

    tickets: Sequence[Ticket]
    done: int = 0
    step: Progress | None = None
    preview: Image | None = None

    def follow(self, event: Event) -> None:
        """Note the newest progress and preview."""
        if isinstance(event, Progress):
            self.step = event
        elif isinstance(event, Preview) and isinstance(event.media, Image):
            self.preview = event.media
        elif event.last:
            self.done += 1

    @property
    def fraction(self) -> float:
        """How much is done, from 0 to 1."""
        part = self.step.position / max(1, self.step.steps) if self.step else 0.0
        return min(0.99, (self.done + (part if self.done < len(self.tickets) else 0.0)) / len(self.tickets))


@dataclass
class WebuiState:
    """What the WebUI interface remembers between requests: the chosen model, and what is running, by client."""

    model: str = ""
    running: dict[str, list[WebuiRun]] = field(default_factory=dict)
    guard: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def holding(self, client: str, tickets: Sequence[Ticket]) -> Iterator[None]:
        """Count these as running."""
        run = WebuiRun(tickets)
        with self.guard:
            self.running.setdefault(client, []).append(run)
        try:
            for each in tickets:
                each.listen(run.follow)
            yield
        finally:
            with self.guard:
                self.running[client].remove(run)

    def of(self, client: str) -> list[WebuiRun]:
        """What a client has running, oldest first."""
        with self.guard:
            return list(self.running.get(client, ()))
