"""The generator under test: its model, its inputs, and requests that are run step by step, without the engine.

Running requests this way gives access to every state.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from studio.caching import cached_property
from studio.devices import torch_setup
from studio.engine.calls.failures import check_state
from studio.engine.request import Request
from studio.generator import Generator, Rng, State
from studio.inputs import Inputs
from studio.media import Media, Text
from studio.recipe import PluginRef
from studio.testing.samples import good_values

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST_STEPS = 100_000  # a state that is not done by then never will be
T = TypeVar("T")


@dataclass(frozen=True)
class Trajectory:
    """A request that was run unbatched: every state from `start` to the last, and the output of `finish`."""

    states: tuple[State, ...]
    media: Media


class Subject:
    """A generator with values for its inputs, on a device, in a dtype."""

    def __init__(self, generator: Generator, given: Mapping[str, Any], device: str, dtype: str) -> None:
        self.generator, self.given, self.device, self.dtype = generator, dict(given), device, dtype
        self._runs: dict[int, Trajectory] = {}

    @cached_property
    def inputs(self) -> Inputs:
        """Inputs to run with. Raises InputError if no accepted inputs are found."""
        return self.generator.Inputs.parse(good_values(self.generator.Inputs, self.given))

    @cached_property
    def request(self) -> Request:
        """A request for these inputs, with seed 0."""
        plugin = PluginRef(name="conformance", version="0")
        return Request.of(self.generator, self.inputs, 0, plugin, dtype=self.dtype)

    @cached_property
    def model(self) -> Any:
        """Its model, loaded once."""
        torch_setup.prepare()
        return self.call(lambda: self.generator.load(self.request.weights, self.device, self.dtype))

    def run(self, seed: int = 0) -> Trajectory:
        """The request with this seed, run unbatched; cached."""
        if seed not in self._runs:
            self._runs[seed] = self.rerun(seed)
        return self._runs[seed]

    def rerun(self, seed: int) -> Trajectory:
        """Run the request with this seed again, even if it is cached."""
        return self.go_on([self.start(seed)])

    def start(self, seed: int) -> State:
        """The first state of the request with this seed."""
        model = self.model
        return self.call(lambda: self.start_on(model, seed))

    def start_on(self, model: Any, seed: int) -> State:
        """The same with another loaded model."""
        return check_state(self.generator.start(model, self.inputs, Rng(seed)))

    def go_on(self, states: Sequence[State]) -> Trajectory:
        """Step the last of `states` until it is done, unbatched."""
        walked = list(states)
        while not walked[-1].done:
            assert len(walked) < MOST_STEPS, f"not done after {MOST_STEPS:,} steps"
            [after] = self.step([walked[-1]])
            assert after.done or after.position > walked[-1].position, f"a step left position {after.position}"
            walked.append(after)
        [media] = self.finish([walked[-1]])
        return Trajectory(tuple(walked), media)

    def step(self, states: Sequence[State]) -> list[State]:
        """One batched step of several states. Raises AssertionError unless it returns as many states."""
        made = list(self.call(lambda: self.generator.step(self.model, states)))
        assert len(made) == len(states), f"`step` took {len(states)} states and returned {len(made)}"
        return [check_state(each) for each in made]

    def finish(self, states: Sequence[State]) -> list[Media]:
        """The outputs of finished states, several in one call. Raises AssertionError unless it returns as many media,
        each of the declared type.
        """
        generator, model = self.generator, self.model
        one = len(states) == 1
        made = self.call(lambda: [generator.finish(model, states[0])] if one else generator.finish_many(model, states))
        assert len(made) == len(states), f"`finish_many` took {len(states)} states and returned {len(made)}"
        for media in made:
            declared = generator.output
            assert isinstance(media, declared), f"returned {type(media).__name__}, but declares {declared.__name__}"
        return list(made)

    def call(self, work: Callable[[], T]) -> T:
        """Run a plugin's code like the engine: without gradients."""
        with torch_setup.inference():
            return work()


def apart(one: Media, other: Media) -> float:
    """The distance of two media: 0 for equal content, 1 if they cannot be compared, else the largest difference of two
    samples relative to their range (255 for pictures; the largest magnitude for floats). In texts that are JSON,
    floats are compared, relative to the larger one or to 1.
    """
    if one == other:
        return 0.0
    if isinstance(one, Text) and isinstance(other, Text):
        try:
            return _values_apart(json.loads(one.text), json.loads(other.text))
        except (ValueError, RecursionError):  # not JSON, or nested too deeply
            return 1.0
    samples = [_floats(each) for each in (one, other)]
    if samples[0] is None or samples[1] is None or samples[0].shape != samples[1].shape:
        return 1.0
    import numpy as np

    reach = 255.0 if one.kind in ("image", "video") else float(np.abs(samples[0]).max(initial=1e-12))
    return float(np.abs(samples[0] - samples[1]).max(initial=0.0) / reach)


def _values_apart(one: Any, other: Any) -> float:
    """The distance of two JSON values: 1 unless they differ only in floats."""
    if isinstance(one, float) and isinstance(other, float) and math.isfinite(one) and math.isfinite(other):
        return min(1.0, abs(one - other) / max(abs(one), abs(other), 1.0))
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return max(map(_values_apart, one, other), default=0.0)
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return max((_values_apart(one[key], other[key]) for key in one), default=0.0)
    return 0.0 if one == other and type(one) is type(other) else 1.0


def _floats(media: Media) -> NDArray[np.float64] | None:
    samples = media.samples()
    return None if samples is None else samples.astype("float64")
