"""What goes into the engine (Request) and what comes out (events): plain data.

A request's events come in this order: Queued; Loading, if its model is not loaded yet; Started; Notice, Progress and
Preview in between; and exactly one last event: Finished, Failed or CancelledEvent (``event.last``).

Try it: ``for event in studio.Studio().stream("image", prompt="a red apple"): print(event)``
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import JsonValue

from studio.errors import StudioError
from studio.generator import Generator, Rng, State
from studio.inputs import Inputs
from studio.media import Media
from studio.recipe import PluginRef


@dataclass(frozen=True)
class Past:
    """What a resumed request's recipe has to tell of the time before: batch widths, seconds of work, notices."""

    width_min: int = 0
    width_max: int = 0
    seconds: float = 0.0
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """Generator, checked inputs and seed (0 to 2**64 - 1).

    `dtype` overrides the generator's own choice, and `threads` the host's (a replay asks for the recorded ones). A
    preview is made every
    `preview_every` steps; 0 makes none. `label` is the caller's own mark and means nothing to the engine.

    `time_limit_s` overrides the generator's own limit on each of its calls. An `invariant` request steps by itself, so
    that its bytes depend on nothing that runs beside it.

    `client` names on whose behalf it runs: clients get equal shares of the device. A `background` request gives way to
    those that are not. `resume` is called with the model instead of the generator's `start`, and returns a state and
    its Rng to go on from; `past` is what was before that. `parents` are hashes of media that made the inputs without
    being among them (a text that became a part of the prompt); they go into the recipe. What is not `stored` leaves
    nothing behind: neither what it makes nor what that was made from is kept, and no state is saved on the way.
    `destination` is where the caller will write what is made, as JSON in the caller's own words: it is saved with the
    state, for whoever takes the request up.
    """

    generator: Generator
    inputs: Inputs
    seed: int
    plugin: PluginRef
    dtype: str | None = None
    threads: int | None = None
    preview_every: int = 0
    label: str = ""
    client: str = ""
    background: bool = False
    time_limit_s: float | None = None
    invariant: bool = False
    resume: Callable[[Any], tuple[State, Rng]] | None = None
    past: Past = Past()
    parents: tuple[str, ...] = ()
    stored: bool = True
    destination: Mapping[str, JsonValue] | None = None


@dataclass
class Timing:
    """Where a request's time went, in seconds. `steps` counts whole shared steps, however many shared them."""

    queue: float = 0.0
    load: float = 0.0
    start: float = 0.0
    steps: float = 0.0
    finish: float = 0.0

    @property
    def work(self) -> float:
        """What the recipe calls `seconds`: start, steps and finish."""
        return self.start + self.steps + self.finish


class Event:
    """Base of the events; `last` marks those after which none follows, and then `outcome` says what it came to."""

    last: ClassVar[bool] = False
    outcome: ClassVar[str] = ""


@dataclass(frozen=True)
class Queued(Event):
    """Accepted; `ahead` other requests were unfinished then."""

    ahead: int = 0


@dataclass(frozen=True)
class Loading(Event):
    """The model of `generator` is being loaded on `device`."""

    generator: str
    device: str


@dataclass(frozen=True)
class Started(Event):
    """The first state stands; `steps` are to be done."""

    steps: int


@dataclass(frozen=True)
class Notice(Event):
    """Something the user must be told, such as how a prompt was cut."""

    text: str


@dataclass(frozen=True)
class Progress(Event):
    """`position` of `steps` steps are done after `elapsed_s` seconds; the rest is expected to take `eta_s` more."""

    position: int
    steps: int
    elapsed_s: float
    eta_s: float


@dataclass(frozen=True)
class Preview(Event):
    """A rough view after `position` steps."""

    position: int
    media: Media


@dataclass(frozen=True)
class Finished(Event):
    """Done; `media` carries its recipe and, where there is a store, its path."""

    media: Media
    last: ClassVar[bool] = True
    outcome: ClassVar[str] = "finished"


@dataclass(frozen=True)
class Failed(Event):
    """Failed; nothing else was touched."""

    error: StudioError
    last: ClassVar[bool] = True
    outcome: ClassVar[str] = "failed"


@dataclass(frozen=True)
class CancelledEvent(Event):
    """Cancelled; its state is released."""

    last: ClassVar[bool] = True
    outcome: ClassVar[str] = "cancelled"
