"""Status of an engine for other processes: a small file in its run folder, updated twice a second.

Events only change numbers in memory; a thread of its own writes them while there is work, and ends when there is none.
The file says what was true when it was written. `read` returns the status of all living processes.

Try it: ``studio top --json``
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from studio.engine.checkpoints.run_folder import RunFolder, alive, folders
from studio.engine.observe.watcher import Watcher
from studio.errors import StoreError
from studio.files import open_regular

FILE = "status.json"
EVERY_S = 0.5
_WINDOW_S = 5.0  # window for steps per second
_MOST = 100  # requests that are listed; others are only counted
_MAX_BYTES = 1 << 20


@dataclass
class _RequestRow:
    """One unfinished request."""

    request: int
    generator: str
    client: str
    background: bool
    position: int = 0
    steps: int = 0
    step_s: float = 0.0  # between its last steps, smoothed
    seen: float = 0.0

    def as_json(self) -> dict[str, Any]:
        eta = round(self.step_s * max(0, self.steps - self.position), 1) if self.step_s else None
        shown = {"request", "generator", "client", "background", "position", "steps"}
        return {**{name: value for name, value in asdict(self).items() if name in shown}, "eta_s": eta}


class Status(Watcher):
    """Writes the status into the run folder. `device` is the engine's device."""

    def __init__(self, folder: RunFolder, device: str) -> None:
        self.folder, self.device = folder, device
        self._guard = threading.Lock()
        self._rows: dict[int, _RequestRow] = {}
        self._models: dict[str, tuple[str, int]] = {}
        self._memory: dict[str, tuple[int, int]] = {}
        self._steps: deque[tuple[float, int]] = deque()
        self._since = time.time()
        self._closed = threading.Event()
        self._writer: threading.Thread | None = None

    def accepted(self, request: int, generator: str, client: str, background: bool, at: float) -> None:
        """A request was accepted: start the writer thread if it is not running."""
        with self._guard:
            self._rows[request] = _RequestRow(request, generator, client, background)
            if self._writer is None and not self._closed.is_set():
                self._writer = threading.Thread(target=self._write_while_busy, name="studio-status", daemon=True)
                self._writer.start()

    def loaded(self, generator: str, device: str, size: int, begun: float, ended: float) -> None:
        """A model is on the device."""
        with self._guard:
            self._models[generator] = (device, size)

    def evicted(self, generator: str, device: str, place: str, size: int, at: float) -> None:
        """A model is no longer on its device."""
        with self._guard:
            self._models.pop(generator, None)
            if place == "host":
                self._models[generator] = (place, size)

    def started(self, request: int, generator: str, steps: int, begun: float, ended: float) -> None:
        """A request has started, with `steps` steps."""
        with self._guard:
            row = self._rows[request]
            row.steps, row.seen = steps, ended

    def stepped(
        self, requests: tuple[int, ...], positions: tuple[int, ...], generator: str, begun: float, ended: float
    ) -> None:
        """These requests have completed a step."""
        with self._guard:
            for request, position in zip(requests, positions, strict=True):
                row = self._rows[request]
                took, row.position, row.seen = ended - row.seen, position, ended
                row.step_s = took if not row.step_s else 0.7 * row.step_s + 0.3 * took
            self._steps.append((ended, len(requests)))
            while ended - self._steps[0][0] > _WINDOW_S:
                self._steps.popleft()

    def ended(self, request: int, generator: str, outcome: str, at: float) -> None:
        """A request has ended."""
        with self._guard:
            self._rows.pop(request, None)

    def memory(self, device: str, used: int, budget: int) -> None:
        """The memory in use."""
        with self._guard:
            self._memory[device] = (used, budget)

    def as_json(self, now: float) -> dict[str, Any]:
        """The status as JSON; `now` is by the engine's clock."""
        with self._guard:
            recent = [(at, width) for at, width in self._steps if now - at <= _WINDOW_S]
            span = max(now - recent[0][0], 0.5) if recent else 1.0
            devices = {self.device: (0, 0), **self._memory}
            return {
                "pid": os.getpid(),
                "since": round(self._since, 1),
                "devices": [{"device": name, "used": used, "budget": most} for name, (used, most) in devices.items()],
                "models": [
                    {"generator": name, "place": place, "bytes": size} for name, (place, size) in self._models.items()
                ],
                "steps_per_second": round(len(recent) / span, 2),
                "request_steps_per_second": round(sum(width for _, width in recent) / span, 2),
                "unfinished": len(self._rows),
                "requests": [row.as_json() for row in list(self._rows.values())[:_MOST]],
            }

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        with self._guard:
            writer = self._writer
        if writer is not None:
            writer.join()

    def _write_while_busy(self) -> None:
        while True:
            as_json = self.as_json(time.perf_counter())
            with suppress(StoreError):  # a write failure surfaces when the output is stored
                self.folder.write(FILE, json.dumps(as_json).encode(), durable=False)
            with self._guard:
                if self._closed.is_set() or not (self._rows or as_json["unfinished"]):
                    self._writer = None
                    return
            self._closed.wait(EVERY_S)


def read(home: Path) -> list[dict[str, Any]]:
    """The status of the engines of living processes, sorted by process; other files are skipped."""
    found = []
    for folder in folders(home):
        try:
            with open_regular(folder / FILE) as file:
                as_json = json.loads(file.read(_MAX_BYTES))
        except (OSError, ValueError):
            continue
        if isinstance(as_json, dict) and alive(folder):
            found.append(as_json)
    return sorted(found, key=lambda as_json: str(as_json.get("pid")))
