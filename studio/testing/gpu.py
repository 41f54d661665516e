"""The check "runs on a GPU": a generator on the fake GPU of `fake_gpu`, compared with the same requests on the CPU.

It detects without a GPU what would fail on one (tensors of two devices in one operator), and counts what would be
slow: synchronizations within a step, and launches that grow with the batch size.

Try it: ``studio plugins check image``, and read `waits` and `launches`
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from studio.devices import torch_setup
from studio.engine.checkpoints.encoding import Unsavable, decode_state, encode_state
from studio.generator import Generator, State
from studio.media import Media
from studio.testing.report import Finding, Number
from studio.testing.subject import Subject, apart

if TYPE_CHECKING:
    from studio.testing.fake_gpu import Counts, FakeGpu

CHECK = "runs on a GPU"
_WIDE = 8  # requests in the widest step that is counted


@dataclass
class _Walk:
    """The outputs of a generator's requests, and the counts of each step by batch size."""

    media: list[Media] = field(default_factory=list)
    together: list[Media] = field(default_factory=list)  # by `finish_many`
    starts: list[Counts] = field(default_factory=list)
    steps: list[tuple[int, Counts]] = field(default_factory=list)
    finishes: list[Counts] = field(default_factory=list)


def runs_on_a_gpu(subject: Subject, tolerance: float) -> Finding:
    """Two requests at different positions are started, batched, previewed, saved, resumed and finished on the fake GPU,
    with the same output as on the CPU. CUDA graphs (`studio.devices.graphs`) are recorded and replayed.
    """
    if subject.device != "cpu":
        return Finding(CHECK, "skipped", f"the other checks ran on `{subject.device}` itself")
    if find_spec("torch") is None:
        return Finding(CHECK, "skipped", "torch is not installed")
    generator = subject.generator
    model = subject.model
    here = _Walker(subject, model, "cpu").walk()
    from studio.testing.fake_gpu import FakeGpu

    with FakeGpu.installed() as gpu, torch_setup.inference():
        model = generator.load(subject.request.weights, gpu.name, subject.dtype)
        walker = _Walker(subject, model, gpu.name, gpu)
        gpu.record_after(1)
        there = walker.walk()
        gpu.records_graphs = False
        wide = walker.wide()
        gpu.records_graphs = True
        repeated, recorded = walker.wide(), (gpu.recordings, gpu.not_recorded)
    distance = _furthest(here.media, there.media)
    off = max(distance, _furthest(here.together, there.together))
    assert off <= tolerance, f"the output on the fake GPU differs from the CPU's: {off:.2%} of the range"
    summary, numbers = _summary(there, wide, distance)
    return Finding(CHECK, "passed", *_with_recordings(summary, numbers, repeated, *recorded))


def _furthest(some: Sequence[Media], others: Sequence[Media]) -> float:
    return max((apart(one, other) for one, other in zip(some, others, strict=True)), default=0.0)


def _summary(walk: _Walk, wide: Mapping[int, Counts], distance: float) -> tuple[str, dict[str, Number]]:
    """The text and the numbers of the finding."""
    most = max((counts for _, counts in walk.steps), key=lambda counts: counts.waited)
    width = max(wide)
    one, all_of_them = wide[1].launched, wide[width].launched
    numbers: dict[str, Number] = {
        "waits": most.waited, "pageable": max(counts.pageable.total() for _, counts in walk.steps),
        "start_waits": max(counts.waited for counts in walk.starts),
        "finish_waits": max(counts.waited for counts in walk.finishes), "launches": one, "width": width,
        "launches_wide": all_of_them, "apart": distance,
    }  # fmt: skip
    summary = f"{'equal bytes' if distance == 0 else f'{distance:.2%} apart'}; a step waits {most.waited} times"
    if most.waits:
        summary += f" ({', '.join(sorted(most.waits))})"
    summary += f" and launches {one} operators"
    if width > 1:
        summary += f", one of {width} requests {all_of_them}"
    return summary, numbers


def _with_recordings(
    summary: str, numbers: dict[str, Number], repeated: Mapping[int, Counts], count: int, failed: Sequence[str]
) -> tuple[str, dict[str, Number]]:
    """Add the launches of recorded and replayed steps (`studio.devices.graphs`), if any."""
    if failed:
        summary += f"; some launches cannot be recorded: {'; '.join(sorted({*failed}))}"
    if count:
        one, all_of_them = repeated[1].launched, repeated[max(repeated)].launched
        summary += f"; repeated from a recording it launches {one}" + (
            f" and {all_of_them}" if max(repeated) > 1 else ""
        )
        numbers |= {"launches_repeated": one, "launches_repeated_wide": all_of_them}
    return summary, numbers | {"recordings": count, "not_recorded": len(failed)}


class _Walker:
    """Runs requests of a subject on a device; counts synchronizations and launches on the fake GPU."""

    def __init__(self, subject: Subject, model: Any, device: str, gpu: FakeGpu | None = None) -> None:
        self.subject, self.generator, self.model, self.device, self.gpu = subject, subject.generator, model, device, gpu

    def walk(self) -> _Walk:
        """Start two requests, step one, then both to their end; preview, save and resume the first in between."""
        from studio.testing.fake_gpu import Counts

        walk, generator = _Walk(), self.generator
        with torch_setup.inference():
            states: list[State] = []
            for seed in (0, 1):
                with self._counting() as counts:
                    states.append(self.subject.start_on(self.model, seed))
                walk.starts.append(counts or Counts())
            states[:1] = self._step(walk, states[:1])
            first = True
            while not all(state.done for state in states):
                for members in self._together(states):
                    made = self._step(walk, [states[i] for i in members])
                    for i, state in zip(members, made, strict=True):
                        states[i] = state
                if first:
                    generator.preview(self.model, states[0])
                    states[0], first = self._read_again(states[0]), False
            for state in states:
                with self._counting() as counts:
                    walk.media.append(generator.finish(self.model, state))
                walk.finishes.append(counts or Counts())
            if type(generator).finish_many is not Generator.finish_many:
                walk.together = list(generator.finish_many(self.model, states))
        return walk

    def wide(self) -> dict[int, Counts]:
        """The counts of a step of one request and of a batched step; not of the first such step, so that recorded
        launches are replayed.
        """
        width = min(_WIDE, self.generator.max_batch)
        made: dict[int, Counts] = {}
        with torch_setup.inference():
            states = [self.subject.start_on(self.model, seed) for seed in range(width)]
            members = self._together(states)[0]
            for some in ([states[members[0]]], [states[i] for i in members]):
                for _ in range(3 if self.gpu and self.gpu.records_graphs else 2):
                    with self._counting() as counts:
                        self.generator.step(self.model, some)
                assert counts is not None
                made[len(some)] = counts
        return made

    def _counting(self) -> Any:
        return nullcontext() if self.gpu is None else self.gpu.counting()

    def _step(self, walk: _Walk, states: Sequence[State]) -> list[State]:
        from studio.testing.fake_gpu import Counts

        with self._counting() as counts:
            made = list(self.generator.step(self.model, states))
        walk.steps.append((len(states), counts or Counts()))
        return made

    def _together(self, states: Sequence[State]) -> list[list[int]]:
        """The unfinished states that are batched in the next step."""
        groups: dict[Any, list[int]] = {}
        for i, state in enumerate(states):
            if not state.done:
                groups.setdefault(self.generator.batch_key(state), []).append(i)
        most = self.generator.max_batch
        return [group[at : at + most] for group in groups.values() for at in range(0, len(group), most)]

    def _read_again(self, state: State) -> State:
        """The state after saving and restoring; unchanged if it cannot be saved, which another check reports."""
        try:
            saved, tensors = encode_state(state)
        except Unsavable:
            return state
        first = self.subject.start_on(self.model, 0)
        return decode_state(json.loads(json.dumps(saved)), tensors, first, self.device)
