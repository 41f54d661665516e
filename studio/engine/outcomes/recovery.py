"""Recovery: what happens to requests after one of their calls failed.

A batch that fails is retried with its unchanged states, each request by itself for 1, 2, 4 … steps, so that only the
request at fault fails. A call that runs out of memory (OOM) is retried with a fallback from `out_of_memory`. A call
that exceeds its timeout fails all requests of its generator, which gets no work until that call returns. A lost device
fails every request.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter

from studio.engine.calls.call import Calling
from studio.engine.calls.failures import as_error
from studio.engine.invoke import Invoker
from studio.engine.observe.watcher import Watcher
from studio.engine.outcomes.completion import Completion, notify
from studio.engine.outcomes.out_of_memory import drop_for_speed, evict_models, recover
from studio.engine.scheduling.admission import Admission
from studio.engine.scheduling.fair_queue import FairQueue
from studio.engine.scheduling.tracked import TrackedRequest
from studio.errors import DeviceLost, GeneratorFailed, OutOfMemory, StudioError, TimedOut, describe
from studio.generator import Generator

_number = attrgetter("number")


class Recovery:
    """Handles the failures of one loop: it retries a request, changes how it runs, or ends it through `completion`."""

    def __init__(
        self,
        admission: Admission,
        queue: FairQueue[TrackedRequest],
        completion: Completion,
        invoker: Invoker,
        watcher: Watcher,
        clock: Callable[[], float],
    ) -> None:
        self.admission, self.queue, self.completion, self.invoker = admission, queue, completion, invoker
        self.watcher, self.clock = watcher, clock
        self._hung: dict[Generator, TimedOut] = {}
        self._lost: DeviceLost | None = None

    def refusal(self, generator: Generator) -> StudioError | None:
        """The reason why a generator gets no work, or None: the device is lost, or an abandoned call still runs."""
        error = self._hung.get(generator)
        if error is not None and error.over():
            del self._hung[generator]
            error = None
        return self._lost or error

    def device_lost(self, error: DeviceLost) -> None:
        """End all requests with the reason, and accept no more."""
        self._lost = error
        for entry in self.queue.jobs():
            self.completion.fail(entry, error)

    def abandon(self, entry: TrackedRequest, error: TimedOut) -> None:
        """A call exceeded its timeout: end all requests of its generator, which gets no work until the call returns."""
        generator = entry.request.generator
        self._hung[generator] = error
        if entry.model is not None:
            self.admission.stuck[entry.model] = error
        for each in self.queue.jobs():
            if each.request.generator is generator:
                self.completion.fail(each, error)

    def step_failed(self, batch: list[TrackedRequest], error: BaseException, begun: float) -> Calling[None]:
        """A shared step failed. Retry it if its states are unchanged, else fail the requests at fault."""
        if self._is_device_lost(error):
            return
        lead = batch[0]
        position = lead.state.position + 1 if lead.state else 0
        found = as_error(lead.name, f"step {position}", error)
        self.watcher.step_failed(tuple(map(_number, batch)), lead.name, found.message, begun, self.clock())
        if isinstance(found, TimedOut):
            self.abandon(lead, found)
            return
        batch = self._without_mutated(batch, found)
        if not batch:
            return
        fallback = (yield from recover(self.admission, batch)) if isinstance(found, OutOfMemory) else ""
        if fallback:
            for entry in batch:
                notify(entry, (f"out of memory at batch size {len(batch)}: {fallback}",))
        elif len(batch) == 1:
            self.completion.fail(batch[0], found)
        else:
            for entry in batch:
                entry.isolated_steps = 2**entry.batch_failures
                entry.batch_failures += 1

    def call_failed(self, entry: TrackedRequest, where: str, error: BaseException) -> None:
        """A load, start or finish of one request failed. Retry it with fewer models if memory ran out, else fail it."""
        if self._is_device_lost(error):
            return
        found = as_error(entry.name, where, error)
        if isinstance(found, TimedOut):
            self.abandon(entry, found)
        elif isinstance(found, OutOfMemory) and (fallback := evict_models(self.admission, entry)):
            notify(entry, (f"out of memory in {where}: {fallback}",))
        else:
            self.completion.fail(entry, found)

    def finish_failed(self, batch: Sequence[TrackedRequest], error: BaseException) -> None:
        """A finish failed. Several requests are finished again, fewer at once or each by itself."""
        lead = batch[0]
        if len(batch) == 1:
            self.call_failed(lead, "finish", error)
            return
        found = as_error(lead.name, "finish", error)
        if isinstance(found, TimedOut):
            self.abandon(lead, found)
        elif isinstance(found, OutOfMemory) and lead.group is not None:
            fallback = drop_for_speed(self.admission, lead)
            fallback = fallback or f"retrying with batch size {self.admission.halve_finish(lead.group, len(batch))}"
            for entry in batch:
                notify(entry, (f"out of memory in finish at batch size {len(batch)}: {fallback}",))
        else:
            for entry in batch:
                entry.isolated_steps = 1

    def _without_mutated(self, batch: list[TrackedRequest], found: StudioError) -> list[TrackedRequest]:
        """Fail the requests whose states the failed step has mutated: they cannot be retried."""
        mutated = self.invoker.mutated()
        for entry in mutated:
            message = f"{found.message}; the step had also changed its input state, which is not allowed"
            self.completion.fail(entry, GeneratorFailed(entry.name, message, hint=found.hint))
        return [entry for entry in batch if entry not in mutated]

    def _is_device_lost(self, error: BaseException) -> bool:
        """Whether an error has made the device unusable; all requests have ended then."""
        device = self.invoker.device
        if not device.is_lost(error):
            return False
        message = f"the device `{device.name}` failed and this process cannot use it again: {describe(error, 200)}"
        self.device_lost(DeviceLost(message, hint="restart Studio, or use `--device cpu`"))
        return True
