"""Request: the input of the engine. Its output are events (see `events`).

Try it: ``studio.Studio().submit("image", prompt="a red apple").request.spec``
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from studio import models
from studio.engine.checkpoints.checkpoint import Checkpoint
from studio.generator import Generator
from studio.inputs import Inputs
from studio.media import Label
from studio.recipe import PluginRef
from studio.spec import JobSpec, ModelRef


@dataclass(frozen=True)
class Request:
    """A JobSpec with the objects of this process that it names.

    `inputs` are the validated inputs with their media in memory, and `weights` is the located model. `resume` is the
    saved request that this one continues, which the recipe records; `notices` go to the user and into the recipe.
    `label` is the AI label of the output and the previews. Its state is saved under the name `saved_as` (empty: a
    random one).
    """

    spec: JobSpec
    generator: Generator
    inputs: Inputs
    plugin: PluginRef
    weights: ModelRef
    resume: Checkpoint | None = None
    notices: tuple[str, ...] = ()
    label: Label | None = None
    saved_as: str = ""

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
        """A request for validated inputs; `options` are other fields of the JobSpec, and `pins` has the revision and
        the hashes that the weights must have. Raises ModelError, UnknownName or UsageError for missing weights,
        InputError for an option out of range.
        """
        model = inputs.model_ref()
        if pins is not None:
            model = model.model_copy(update={"sha256": pins.sha256, "revision": pins.revision})
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
    """The seconds that a request spent in each phase. `steps` counts shared steps in full, whatever the batch size."""

    queue: float = 0.0
    load: float = 0.0
    start: float = 0.0
    steps: float = 0.0
    finish: float = 0.0

    @property
    def work(self) -> float:
        """The recipe's `seconds`: start, steps and finish."""
        return self.start + self.steps + self.finish
