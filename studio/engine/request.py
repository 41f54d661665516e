"""What goes into the engine (Request) and what comes out (events): plain data.

A request's events come in this order: Queued; Loading, if its model is not loaded yet; Started; Notice, Progress and
Preview in between; and exactly one last event: Finished, Failed or CancelledEvent (``event.last``).

Try it: ``for event in studio.Studio().stream("image", prompt="a red apple"): print(event)``
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from studio.errors import StudioError
from studio.generator import Generator
from studio.inputs import Inputs
from studio.media import Media
from studio.recipe import PluginRef


@dataclass(frozen=True)
class Request:
    """Generator, checked inputs and seed (0 to 2**64 - 1).

    `dtype` overrides the generator's own choice (a replay asks for the recorded one). A preview is made every
    `preview_every` steps; 0 makes none. `label` is the caller's own mark and means nothing to the engine.
    """

    generator: Generator
    inputs: Inputs
    seed: int
    plugin: PluginRef = PluginRef(name="unknown", version="0")
    dtype: str | None = None
    preview_every: int = 0
    label: str = ""


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


@dataclass(frozen=True)
class Event:
    """Base of the events; `last` marks those after which none follows."""

    last: ClassVar[bool] = False


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
    """`position` of `steps` steps are done after `elapsed_s`; `eta_s` more are expected for the rest (None: unknown)."""

    position: int
    steps: int
    elapsed_s: float
    eta_s: float | None


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


@dataclass(frozen=True)
class Failed(Event):
    """Failed; nothing else was touched."""

    error: StudioError
    last: ClassVar[bool] = True


@dataclass(frozen=True)
class CancelledEvent(Event):
    """Cancelled; its state is released."""

    last: ClassVar[bool] = True


@dataclass(frozen=True)
class Model:
    """A loaded model and what the recipe says of it: `weights` maps file names to sha256."""

    value: Any
    device: str
    dtype: str
    weights: Mapping[str, str] = field(default_factory=dict)
