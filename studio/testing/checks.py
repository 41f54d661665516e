"""The conformance checks of a generator, each a function of a Subject that returns a Finding.

A check raises AssertionError if it fails; any other exception of the generator fails it too (see `studio.testing`).

Try it: ``studio plugins check image``
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from importlib.util import find_spec
from typing import TypeVar

from studio import devices
from studio.contract import check as check_declared
from studio.devices.memory import MemoryProbe
from studio.engine import Engine, Ticket
from studio.engine.checkpoints.encoding import Unsavable, decode_state, encode_state
from studio.engine.events import CancelledEvent, Failed
from studio.engine.memory.ledger import tensor_bytes, weight_bytes
from studio.engine.observe.watcher import Watcher
from studio.errors import StudioError
from studio.plugins import BY_PATH
from studio.testing.report import Finding, Number
from studio.testing.samples import bad_values
from studio.testing.subject import Subject, apart
from studio.units import show_bytes

TOLERANCE = 0.02  # of the samples' range: allowed difference between batched and unbatched output in float32
SLACK = 1 << 20  # bytes that a model may have beyond its weight files: buffers, tables
_TOGETHER = 3
T = TypeVar("T")


def inputs_declared(subject: Subject) -> Finding:
    """The generator and every input are declared and documented."""
    reasons = check_declared(subject.generator)
    assert not reasons, "; ".join(reasons)
    flags = subject.generator.Inputs.flags()
    numeric = [flag for flag in flags if flag.type in ("int", "float") and not flag.choices]
    bounded = [flag for flag in numeric if flag.minimum is not None and flag.maximum is not None]
    open_ended = ", ".join(f"`{flag.name}`" for flag in numeric if flag not in bounded)
    assert not open_ended, f"numbers without a lower and an upper limit: {open_ended}; declare `ge` and `le`"
    return _passed(
        "inputs declared",
        f"{len(flags)} inputs, each with help; {len(numeric)} numbers, each with limits",
        inputs=len(flags),
        numbers=len(numeric),
    )


def bad_inputs_refused(subject: Subject) -> Finding:
    """Values outside the declared limits are rejected with an error that says what is allowed."""
    good = dict(subject.inputs)
    taken, tried = [], 0
    for name, why, value in [*bad_values(subject.generator.Inputs), ("no_such_input", "unknown", 1)]:
        tried += 1
        try:
            subject.generator.Inputs.parse({**good, name: value})
        except StudioError:
            continue
        taken.append(f"`{name}` ({why})")
    assert not taken, f"{len(taken)} of {tried} bad values were accepted: {', '.join(taken)}"
    return _passed("bad inputs refused", f"{tried} values outside the declared limits were rejected", tried=tried)


def imports_no_torch(subject: Subject) -> Finding:
    """Importing the plugin loads no torch, so that listing plugins stays fast."""
    module = sys.modules[type(subject.generator).__module__]
    root = sys.modules.get(module.__name__.partition(".")[0], module)
    file = getattr(root, "__file__", None)
    if file is None:
        return Finding("imports no torch", "skipped", "its module has no file")
    by_name = _importable(root.__name__)
    asked = [root.__name__ if by_name else "", file, sys.path, module.__name__ if by_name else ""]
    command = [sys.executable, "-c", _IMPORT, json.dumps(asked)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, f"it cannot be imported by itself: {''.join(ran.stderr.strip().splitlines()[-1:])}"
    heavy, seconds = json.loads(ran.stdout.splitlines()[-1])
    assert "torch" not in heavy, "importing it loads torch; import torch in `load`, `start`, `step` and `finish`"
    more = f", and loads {', '.join(heavy)}" if heavy else ""
    return _passed("imports no torch", f"importing it takes {seconds:.2f} s{more}", seconds=round(seconds, 3))


_IMPORT = """
import importlib, importlib.util, json, sys, time
name, file, path, module = json.loads(sys.argv[1])
sys.path[:] = path
import studio.generator, studio.hookspecs
begun = time.perf_counter()
if name:
    importlib.import_module(name)
    importlib.import_module(module)
else:
    folder = [file.removesuffix("__init__.py")] if file.endswith("__init__.py") else None
    spec = importlib.util.spec_from_file_location("plugin_by_path", file, submodule_search_locations=folder)
    sys.modules["plugin_by_path"] = loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
took = time.perf_counter() - begun
heavy = ("torch", "diffusers", "transformers", "open_clip", "numpy", "PIL")
print(json.dumps([[each for each in heavy if each in sys.modules], took]))
"""


def _importable(name: str) -> bool:
    """Whether another process can import the module by name; not so for a plugin loaded by path."""
    if name == "__main__" or name.startswith(BY_PATH):
        return False
    try:
        return find_spec(name) is not None
    except ValueError:  # a module without a spec
        return False


def seed_decides(subject: Subject) -> Finding:
    """Equal seeds give equal bytes."""
    first, again = subject.run(0), subject.rerun(0)
    assert first.media == again.media, f"two runs with seed 0 differ: {_far(apart(first.media, again.media))}"
    other = subject.run(1).media != first.media
    more = "seed 1 gives others" if other else "so does seed 1: the seed has no effect"
    return _passed("seed decides", f"two runs with seed 0 gave equal bytes; {more}", seed_matters=other)


def batched_as_alone(subject: Subject) -> Finding:
    """Batched output equals unbatched output, within `TOLERANCE`."""
    check = "batched as alone"
    if subject.generator.max_batch == 1:
        return Finding(check, "skipped", "`max_batch` is 1")
    seeds = range(min(_TOGETHER, subject.generator.max_batch))
    states = [subject.start(seed) for seed in seeds]
    widest, last = 1, dict.fromkeys(seeds)
    while left := [i for i, state in enumerate(states) if not state.done]:
        key = subject.generator.batch_key(states[left[0]])
        members = [i for i in left if subject.generator.batch_key(states[i]) == key]
        widest = max(widest, len(members))
        for i, after in zip(members, subject.step([states[i] for i in members]), strict=True):
            states[i], last[i] = after, key
    if widest == 1:
        return Finding(check, "skipped", "its batch keys never allow batching")
    alike = [[seed for seed in seeds if last[seed] == key] for key in dict.fromkeys(last.values())]
    made = {
        seed: each
        for group in alike
        for seed, each in zip(group, subject.finish([states[i] for i in group]), strict=True)
    }
    worst = max(apart(subject.run(seed).media, made[seed]) for seed in seeds)
    assert worst <= TOLERANCE, f"a batch of {widest} changes the output by {_far(worst)}; allowed are {TOLERANCE:.0%}"
    said = "equal bytes" if worst == 0 else f"at most {_far(worst)} apart"
    return _passed(check, f"{len(seeds)} requests in batches of up to {widest}: {said}", width=widest, apart=worst)


def states_stay_valid(subject: Subject) -> Finding:
    """A step does not mutate its states, so that a failed step can be retried."""
    run = subject.run(0)
    if len(run.states) < 3:
        return Finding("states stay valid", "skipped", "it has one step")
    middle = len(run.states) // 2
    again = subject.go_on(run.states[middle : middle + 1])
    distance = apart(run.media, again.media)
    assert distance == 0, f"a second step from state {middle} gives another output: {_far(distance)}"
    return _passed("states stay valid", f"a second run from state {middle} gave equal bytes", position=middle)


def resumes(subject: Subject) -> Finding:
    """A state that is saved midway and restored continues to the same bytes."""
    run = subject.run(0)
    if len(run.states) < 3:
        return Finding("saved and resumed", "skipped", "it has one step; such requests start again")
    middle = len(run.states) // 2
    try:
        saved, tensors = encode_state(run.states[middle])
    except Unsavable as error:
        raise AssertionError(f"{error}; or declare the field with `studio.unsaved()`") from None
    text = json.dumps(saved, allow_nan=False)
    read = decode_state(json.loads(text), tensors, subject.start(0), subject.device)
    resumed = subject.go_on([read])
    distance = apart(run.media, resumed.media)
    assert distance == 0, f"saved at step {middle} and resumed, it gives another output: {_far(distance)}"
    size = len(text) + sum(each.nbytes for each in tensors.values())
    said = f"saved at step {middle} of {len(run.states) - 1} in {show_bytes(size)}, resumed to equal bytes"
    return _passed("saved and resumed", said, position=middle, bytes=size)


class _Canceller(Watcher):
    """Cancels a request after its first step, in the engine's thread, and counts the steps after that."""

    def __init__(self) -> None:
        self.after = 0
        self._ticket: Ticket | None = None
        self._given = threading.Event()
        self._armed = self._cancelled = False

    def arm(self) -> None:
        """Cancel the next request."""
        self._armed = True

    def aim(self, ticket: Ticket) -> None:
        """Set the ticket of that request."""
        self._ticket = ticket
        self._given.set()

    def stepped(
        self, requests: tuple[int, ...], positions: tuple[int, ...], generator: str, begun: float, ended: float
    ) -> None:
        """Cancel, or count."""
        if not self._armed:
            return
        self._given.wait()
        assert self._ticket is not None
        if self._cancelled:
            self.after += 1
        self._cancelled = True
        self._ticket.cancel()


def cancels(subject: Subject) -> Finding:
    """A cancelled request ends within one step of the engine, and all its memory is freed."""
    if len(subject.run(0).states) < 3:
        return Finding("cancels", "skipped", "it has one step, which cannot be cancelled")
    canceller = _Canceller()
    request = subject.request
    with Engine(subject.device, subject.dtype, watchers=[canceller]) as engine:
        engine.submit(request).result()  # loads, and builds what is built once
        held = engine.ledger.used
        canceller.arm()
        ticket = engine.submit(request)
        canceller.aim(ticket)
        *_, last = ticket.events()
        kept = engine.ledger.used - held
    if isinstance(last, Failed):
        raise last.error
    assert isinstance(last, CancelledEvent), "it was cancelled after its first step, and finished"
    after = canceller.after
    assert after <= 1, f"{after} steps ran after it was cancelled; 1 is allowed"
    assert kept == 0, f"{show_bytes(kept)} were not freed after it was cancelled"
    left = _left_behind(subject)
    assert not left, f"{left} of its states are still referenced after the request"
    said = f"{after} steps after it was cancelled, 0 B held, no state left"
    return _passed("cancels", said, steps_after=after, bytes_kept=kept)


def _left_behind(subject: Subject) -> int:
    """How many states of an abandoned request are still alive after the caller released them."""
    refs = []
    state = subject.start(0)
    for _ in range(2):
        refs.append(weakref.ref(state))
        [state] = subject.step([state])
    refs.append(weakref.ref(state))
    del state
    gc.collect()
    return sum(ref() is not None for ref in refs)


def memory_claimed(subject: Subject) -> Finding:
    """The model takes no more memory than its weight files; states and calls are measured."""
    files = subject.generator.weights(subject.request.weights)
    claimed, held = weight_bytes(files, subject.dtype), tensor_bytes(subject.model, subject.device)
    probe = devices.device(subject.device).memory_probe()
    peaks: dict[str, Number] = {}
    state = _probed(probe, lambda: subject.start(0), peaks, "start")
    [after] = _probed(probe, lambda: subject.step([state]), peaks, "step")
    size = max(tensor_bytes(each, subject.device) for each in (state, after))
    numbers = {"claimed": claimed, "held": held, "state": size, **peaks}
    assert held <= claimed * 1.01 + SLACK, (
        f"the model takes {show_bytes(held)}, but the files in `weights` have {show_bytes(claimed)}: list every file"
        " that `load` reads"
    )
    took = "; ".join(f"`{name}` took another {show_bytes(float(peak))}" for name, peak in peaks.items())
    said = f"claimed {show_bytes(claimed)}, takes {show_bytes(held)}; a state has {show_bytes(size)}; {took}"
    return Finding("memory", "passed", said.removesuffix("; "), numbers)


def _probed(probe: MemoryProbe, work: Callable[[], T], peaks: dict[str, Number], name: str) -> T:
    """Run `work`, and record its peak memory beyond what was allocated before, if that can be measured."""
    probe.begin()
    made = work()
    if (found := probe.peak()) is not None:
        peaks[name] = found
    return made


def _passed(check: str, detail: str, **numbers: Number) -> Finding:
    return Finding(check, "passed", detail, numbers)


def _far(distance: float) -> str:
    return "other content" if distance >= 1 else f"{distance:.2%} of the range"
