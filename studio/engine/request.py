"""What goes into the engine (Request) and what comes out (events).

A request's events come in this order: Queued; Loading, if its model is not loaded yet; Started; Notice, Progress and
Preview in between; and exactly one last event: Finished, Failed or CancelledEvent (``event.last``).

Try it: ``for event in studio.Studio().stream("image", prompt="a red apple"): print(event)``
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from studio import models
from studio.engine.checkpoints.checkpoint import Checkpoint
from studio.errors import StudioError
from studio.generator import Generator
from studio.inputs import Inputs
from studio.media import Media
from studio.recipe import PluginRef
from studio.spec import JobSpec, ModelRef


@dataclass(frozen=True)
class Request:
    """A JobSpec, and what this process has for it.

    `inputs` are those of the spec with their media in memory, and `weights` is its model, located. `resume` is a saved
    request to go on from, of which the recipe tells too; `notices` go to the user and into the recipe.
    """

    spec: JobSpec
    generator: Generator
    inputs: Inputs
    plugin: PluginRef
    weights: ModelRef
    resume: Checkpoint | None = None
    notices: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        generator: Generator,
        inputs: Inputs,
        seed: int,
        plugin: PluginRef,
        *,
        pins: ModelRef | None = None,
        **options: Any,
    ) -> Self:
        """A request for checked inputs; `options` are other fields of the JobSpec, and `pins` has the revision and the
        hashes that the weights must have. Raises ModelError, UnknownName or UsageError for weights that are not there,
        InputError for an option out of its range.
        """
        pins = pins or ModelRef()
        model = inputs.model_ref().model_copy(update={"sha256": pins.sha256, "revision": pins.revision})
        weights = models.locate(model)
        if weights.revision:
            model = model.model_copy(update={"revision": weights.revision})
        named = {"generator": generator.name, "inputs": inputs.as_recipe(), "seed": seed, "model": model}
        spec = JobSpec.check(named | options)
        return cls(spec, generator, inputs, plugin, weights)

    def with_seed(self, seed: int, label: str) -> Self:
        """The same with another seed."""
        return replace(self, spec=self.spec.model_copy(update={"seed": seed, "label": label}))


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
