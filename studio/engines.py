"""The engines of a Studio: one per device, each with its watchers, its profile and its run folder.

Try it: ``studio.Studio().router.devices``
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from studio import devices
from studio.attention.current import DispatchSettings
from studio.engine import Engine
from studio.engine.checkpoints.autosave import Autosaver
from studio.engine.checkpoints.run_folder import RunFolder
from studio.engine.cost.profile import MEASURED, Profile
from studio.engine.observe.metrics import Metrics
from studio.engine.observe.status import Status
from studio.engine.observe.trace import Trace
from studio.engine.router import Router
from studio.engine.ticket import RequestLimit
from studio.store import Store
from studio.versions import libraries


class Engines:
    """Makes the engines, and closes what they write to.

    Args:
        home: the data folder.
        chosen: the user's devices (see `studio.devices.choose_many`), or None.
        dtype: instead of the generators' choice, or None.
        memory: each device's budget in bytes, or None.
        trace: the file of a Chrome trace, or None. Raises StoreError if it cannot be written.
        limit: of unfinished requests.
        attention: makes the attention settings, when the first engine is made.
    """

    def __init__(
        self,
        home: Path,
        store: Store,
        *,
        chosen: str | None,
        dtype: str | None,
        memory: int | None,
        trace: Path | None,
        limit: RequestLimit,
        attention: Callable[[], DispatchSettings],
    ) -> None:
        self.folders = [RunFolder(home)]  # the first takes over resumed checkpoints
        self.metrics = Metrics()
        self._home, self._store, self._chosen, self._dtype, self._memory = home, store, chosen, dtype, memory
        self._limit, self._attention = limit, attention
        self._trace = None if trace is None else Trace(trace)
        self._statuses: list[Status] = []

    def router(self, notice: str = "") -> Router:
        """One engine per device; every request has the notice. Raises UsageError for a device that is not available."""
        numbers = itertools.count(1)
        chosen = devices.choose_many(self._chosen)
        notices = [*([notice] if notice else []), *(() if self._chosen else devices.unusable_devices())]
        attention = self._attention()
        return Router([self._make(each, numbers, 0.5 / len(chosen), notices, attention) for each in chosen])

    def abandon(self) -> None:
        """Close the status, the trace and the run folders without waiting."""
        for watching in self._statuses:
            watching.close()
        if self._trace is not None:
            self._trace.close()
        for folder in self.folders:
            folder.close()

    def _make(
        self,
        device: str,
        numbers: Iterator[int],
        host_share: float,
        notices: Sequence[str],
        attention: DispatchSettings,
    ) -> Engine:
        if self._statuses:
            self.folders.append(RunFolder(self._home))
        folder = self.folders[-1]
        self._statuses.append(Status(folder, device))
        seeing = (self.metrics, self._statuses[-1], *([self._trace.lane(device)] if self._trace else ()))
        autosaver = Autosaver(folder, self._store, seeing)
        return Engine(
            device,
            self._dtype,
            store=self._store,
            memory=self._memory,
            profile=Profile(self._home / MEASURED, libraries()),
            watchers=(*seeing, autosaver),
            saver=autosaver,
            numbers=numbers,
            attention=attention,
            host_share=host_share,
            notices=notices,
            limit=self._limit,
        )
