"""Traces: all work of an engine as a Chrome trace, for Perfetto or ``chrome://tracing``.

The file is the JSON array form of the Trace Event Format, one event per line, written as it happens: memory does not
grow, and after a crash only the closing bracket is missing, which the format allows. The work of a device (load, start,
step, preview, finish, save, evict) is in a lane of its own; each request is a span. Times are microseconds from the
start of the trace.

Try it: ``studio --trace trace.json image "a red apple"``, and open the file at https://ui.perfetto.dev
"""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from studio.engine.observe.watcher import Watcher
from studio.files import store_error


class Trace:
    """The trace file. Raises StoreError if it cannot be written; if the disk is full later, only the trace ends.

    `reason` says why it ended early, if it did.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.reason = path, ""
        self._begun = time.perf_counter()
        self._writing = threading.Lock()
        try:
            if path.is_fifo():
                raise OSError(errno.EINVAL, "it is a pipe, not a file")  # opening it would wait for a reader
            self._file = path.open("w", encoding="utf-8", buffering=1)  # by lines, so that a crash loses none
        except OSError as error:
            raise store_error(path, "write", error) from error
        first = {"name": "process_name", "ph": "M", "pid": os.getpid(), "args": {"name": "studio"}}
        self._put("[\n" + json.dumps(first))
        self._lanes = 0

    def lane(self, device: str) -> Lane:
        """A watcher for the engine of a device, with a lane of its own."""
        self._lanes += 1
        return Lane(self, self._lanes, device)

    def close(self) -> None:
        """Write the closing bracket. May be called twice."""
        self._put("\n]\n")
        with self._writing:
            self._file.close()

    def event(self, lane: int, phase: str, name: str, at: float | None, **more: Any) -> None:
        """Write one event; `at` is by the engine's clock, None for metadata."""
        event = {"name": name, "cat": "engine", "ph": phase, "pid": os.getpid(), "tid": lane, **more}
        if at is not None:
            event["ts"] = round((at - self._begun) * 1e6, 1)
        self._put(",\n" + json.dumps(event, separators=(",", ":")))

    def _put(self, text: str) -> None:
        with self._writing:
            if self._file.closed or self.reason:
                return
            try:
                self._file.write(text)
                if not text.endswith("\n"):
                    self._file.flush()
            except OSError as error:
                self.reason = error.strerror or str(error)


class Lane(Watcher):
    """Writes the events of one engine."""

    def __init__(self, trace: Trace, number: int, device: str) -> None:
        self._trace, self._number = trace, number
        self._event("M", "thread_name", None, args={"name": device})

    def accepted(self, request: int, generator: str, client: str, background: bool, at: float) -> None:
        """A request was accepted: its span begins."""
        self._event("b", f"{generator} {request}", at, id=request, args={"client": client, "background": background})

    def loaded(self, generator: str, device: str, size: int, begun: float, ended: float) -> None:
        """A model was loaded or restored."""
        self._span("load", begun, ended, generator=generator, device=device, bytes=size)

    def evicted(self, generator: str, device: str, place: str, size: int, at: float) -> None:
        """A model was evicted."""
        self._event("i", "evict", at, s="t", args=_named(generator=generator, device=device, place=place, bytes=size))

    def started(self, request: int, generator: str, steps: int, begun: float, ended: float) -> None:
        """A request has started."""
        self._span("start", begun, ended, generator=generator, request=request, steps=steps)

    def stepped(
        self, requests: tuple[int, ...], positions: tuple[int, ...], generator: str, begun: float, ended: float
    ) -> None:
        """A step of these requests is complete."""
        self._span(
            "step", begun, ended, generator=generator, width=len(requests), requests=requests, positions=positions
        )

    def step_failed(self, requests: tuple[int, ...], generator: str, reason: str, begun: float, ended: float) -> None:
        """A step failed."""
        self._span("failed step", begun, ended, generator=generator, requests=requests, reason=reason)

    def previewed(self, request: int, generator: str, begun: float, ended: float) -> None:
        """A preview was made."""
        self._span("preview", begun, ended, generator=generator, request=request)

    def saved(self, request: int, generator: str, size: int, begun: float, ended: float) -> None:
        """A state was saved."""
        self._span("save", begun, ended, generator=generator, request=request, bytes=size)

    def finished(self, request: int, generator: str, begun: float, ended: float) -> None:
        """The output was made."""
        self._span("finish", begun, ended, generator=generator, request=request)

    def ended(self, request: int, generator: str, outcome: str, at: float) -> None:
        """A request has ended: its span ends."""
        self._event("e", f"{generator} {request}", at, id=request, args={"outcome": outcome})

    def memory(self, device: str, used: int, budget: int) -> None:
        """The memory in use."""
        self._event("C", f"memory of {device}", time.perf_counter(), args={"used": used, "budget": budget})

    def _span(self, name: str, begun: float, ended: float, **args: Any) -> None:
        self._event("X", name, begun, dur=round((ended - begun) * 1e6, 1), args=args)

    def _event(self, phase: str, name: str, at: float | None, **more: Any) -> None:
        self._trace.event(self._number, phase, name, at, **more)


def _named(**values: Any) -> dict[str, Any]:
    return values
