"""Output while a request runs: previews, and text deltas as they are generated."""

from __future__ import annotations

from collections.abc import Callable

from studio.engine.calls.call import Calling
from studio.engine.calls.failures import as_error
from studio.engine.events import Preview
from studio.engine.invoke import Invoker
from studio.engine.observe.watcher import Watcher
from studio.engine.outcomes.completion import Completion, notify
from studio.engine.outcomes.recovery import Recovery
from studio.engine.scheduling.tracked import TrackedRequest
from studio.errors import TimedOut
from studio.generator import State


class LiveOutput:
    """Emits the previews and text deltas of one loop."""

    def __init__(
        self,
        invoker: Invoker,
        completion: Completion,
        recovery: Recovery,
        watcher: Watcher,
        clock: Callable[[], float],
    ) -> None:
        self._invoker, self._completion, self._recovery = invoker, completion, recovery
        self._watcher, self._clock = watcher, clock

    def stream(self, batch: list[TrackedRequest]) -> Calling[None]:
        """Emit the new text of these requests; a request whose `delta` fails ends with that error."""
        try:
            pieces = yield from self._invoker.deltas(batch)
        except BaseException as error:  # a plugin may raise anything; see failures
            found = as_error(batch[0].name, "delta", error)
            if isinstance(found, TimedOut):
                self._recovery.abandon(batch[0], found)
            for entry in batch:
                self._completion.fail(entry, found)
            return
        for entry, piece in zip(batch, pieces, strict=True):
            if isinstance(piece, BaseException):
                self._completion.fail(entry, as_error(entry.name, "delta", piece))
            else:
                entry.emit_text(piece)

    def preview(self, entry: TrackedRequest, state: State) -> Calling[None]:
        """Emit a preview. If it fails, the request goes on without previews, with a notice."""
        begun = self._clock()
        try:
            if (media := (yield from self._invoker.preview(entry, state))) is not None:
                entry.emit(Preview(state.position, media.labelled(entry.request.label)))
        except BaseException as error:  # a plugin may raise anything; see failures
            found = as_error(entry.name, "preview", error)
            if isinstance(found, TimedOut):
                self._recovery.abandon(entry, found)
                return
            entry.previews_failed = True
            notify(entry, (f"no more previews: {found.message}",))
        self._watcher.previewed(entry.number, entry.name, begun, self._clock())
