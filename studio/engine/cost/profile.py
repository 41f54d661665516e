"""The profile: measured seconds and peak memory of calls, by generator, shape, batch size, device, dtype and threads.

Steps and finish calls are timed; for `start` only the peak is recorded, at batch size 1. The profile is stored in a
small JSON file, written atomically and valid for one set of library versions. It is advisory: a damaged or unwritable
file loses the measurements and nothing else.

Try it: ``studio doctor``
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import deque
from collections.abc import Collection, Hashable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from studio.errors import MediaError, StoreError
from studio.files import make_folder, read_limited, write_atomically

CALLS = ("start", "step", "finish")
MEASURED = "measured.json"  # in the data folder
_KEPT = 9  # latest times of each batch size; their median is used
_ENOUGH = 2  # times of a batch size that are enough to rely on
_MOST_BYTES = 4 << 20
_MOST_ROWS = 2000


@lru_cache(maxsize=4096)
def unthreaded(group: Group) -> Group:
    """The group without its threads. Cached, as every step needs it."""
    return group._replace(threads=None)


class Group(NamedTuple):
    """Calls of equal cost: `shape` is the shortened batch key, `call` is ``step``, ``start`` or ``finish``."""

    generator: str
    version: str
    shape: str
    device: str
    dtype: str
    threads: int | None = None
    call: str = "step"


def finishes(group: Group) -> Group:
    """The group of the finish calls of states whose steps are of this group."""
    return group._replace(call="finish")


def shape_of(key: Hashable) -> str:
    """A shortened batch key: its repr, or a hash of that if it is long."""
    text = repr(key)
    return text if len(text) <= 60 else hashlib.sha256(text.encode()).hexdigest()[:16]


class ProfileRow(BaseModel):
    """One batch size of one group: its latest times in seconds, and its peak memory in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    generator: str
    version: str
    shape: str
    device: str
    dtype: str
    threads: int | None = None
    call: str = "step"
    width: int = Field(ge=1)
    seconds: tuple[float, ...] = Field(max_length=_KEPT)
    peak: int | None = Field(default=None, ge=0)

    @property
    def median(self) -> float | None:
        """Median seconds of a step, or None."""
        return sorted(self.seconds)[len(self.seconds) // 2] if self.seconds else None


@dataclass
class _Width:
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))
    peak: int | None = None
    first_s: float | None = None  # the first step of a process also builds kernels: used until there is another

    def median_s(self) -> float | None:
        """Computed lazily; steps that cannot be batched never need it."""
        kept = sorted(self.seconds)
        return kept[len(kept) // 2] if kept else self.first_s


class Profile:
    """The measurements, and their file if there is one. `versions` are the library versions they are valid for."""

    def __init__(self, path: Path | None = None, versions: Mapping[str, str] | None = None) -> None:
        self._path, self._versions = path, dict(versions or {})
        self._widths: dict[Group, dict[int, _Width]] = {}
        self._counts: dict[Group, int] = {}
        self._greatest: dict[str, int] = {}
        self._peaks: dict[Group, dict[int, int]] = {}  # for any number of threads: memory hardly depends on it
        self._min_peaks: dict[tuple[str, str, str, str], int] = {}  # these two are computed from `_peaks` when needed
        self._start_peaks: dict[tuple[str, str, str, str], int | None] = {}
        self._changed, self._saved_at = False, -math.inf
        for row in self._read():
            self._take(row)

    def record(self, group: Group, width: int, seconds: float, peak: int | None) -> None:
        """Record a successful call; `peak` is its peak memory in bytes, besides weights and states."""
        found = self._width(group, width)
        self._changed = True
        self._counts[group] = self._counts.get(group, 0) + 1
        if peak is not None:
            self._rise(found, group, width, peak)
        if found.first_s is None:
            found.first_s = seconds
        else:
            found.seconds.append(seconds)

    def record_peak(self, group: Group, peak: int | None) -> None:
        """Record the peak memory of a call that is not timed."""
        if peak is not None:
            found = self._width(group, 1)
            self._changed = self._changed or peak > (found.peak or -1)
            self._rise(found, group, 1, peak)

    def seconds(self, group: Group) -> Mapping[int, float]:
        """Median seconds per step for each batch size that was measured."""
        widths = self._widths.get(group, {})
        medians = {width: each.median_s() for width, each in list(widths.items())}
        return {width: median for width, median in medians.items() if median is not None}

    def reliable(self, group: Group) -> Collection[int]:
        """The batch sizes with enough measurements to rely on."""
        widths = self._widths.get(group, {})
        return [width for width, each in widths.items() if len(each.seconds) >= _ENOUGH]

    def count(self, group: Group) -> int:
        """The number of steps recorded since this process started."""
        return self._counts.get(group, 0)

    def peak(self, group: Group, width: int) -> int:
        """Peak memory of a step in bytes, besides weights and states: as measured, else extrapolated from the nearest
        smaller batch size, else 0 (unknown).
        """
        known = self._peaks.get(unthreaded(group), {})
        if width in known:
            return known[width]
        narrower = max((at for at in known if at < width), default=None)
        if narrower is not None:
            return known[narrower] * width // narrower
        return min(known.values(), default=0)

    def device_peak(self, device: str) -> int:
        """The highest measured peak of any call on a device, in bytes."""
        return self._greatest.get(device, 0)

    def peak_known(self, group: Group, width: int) -> bool:
        """Whether the peak of such a call has been measured."""
        return width in self._peaks.get(unthreaded(group), {})

    def estimated(self, group: Group, width: int) -> bool:
        """Whether `peak` rests on a measurement of this batch size or a smaller one."""
        return any(known <= width for known in self._peaks.get(unthreaded(group), {}))

    def start_peak(self, generator: str, version: str, device: str) -> int | None:
        """The highest measured peak of the generator's `start` calls of any shape, in bytes, or None."""
        asked = (generator, version, device, "start")
        if asked not in self._start_peaks:
            self._start_peaks[asked] = max(
                (max(widths.values()) for group, widths in self._peaks.items()
                 if widths and (group.generator, group.version, group.device, group.call) == asked),
                default=None,
            )  # fmt: skip
        return self._start_peaks[asked]

    def max_peak(self, group: Group) -> int:
        """The highest peak of any call of one state of this shape: start, step or finish."""
        return max(self.peak(group._replace(call=call), 1) for call in CALLS)

    def min_peak(self, generator: str, version: str, device: str, dtype: str) -> int:
        """The lowest `max_peak` of all shapes of the generator: an estimate for a shape without measurements."""
        asked = (generator, version, device, dtype)
        if asked not in self._min_peaks:
            shapes = {
                group._replace(call="step")
                for group in self._peaks
                if (group.generator, group.version, group.device, group.dtype) == asked
            }
            self._min_peaks[asked] = min((self.max_peak(group) for group in shapes), default=0)
        return self._min_peaks[asked]

    def rows(self) -> list[ProfileRow]:
        """All measurements, sorted by generator, shape, device, dtype and batch size."""
        rows = [
            ProfileRow(**group._asdict(), width=width, seconds=tuple(each.seconds), peak=each.peak)
            for group, widths in list(self._widths.items())
            for width, each in list(widths.items())
        ]
        return sorted(
            rows,
            key=lambda row: (row.generator, row.shape, row.device, row.dtype, row.call, row.threads or 0, row.width),
        )

    def save(self, *, every_s: float = 0) -> None:
        """Write the file, if there is one and there are new measurements, at most once in `every_s` seconds. Rows that
        another process has written in the meantime are preserved.
        """
        now = time.monotonic()
        if self._path is None or not self._changed or now - self._saved_at < every_s:
            return
        self._changed, self._saved_at = False, now
        own = {self._key(row): row for row in self.rows()}
        rows = {**{self._key(row): row for row in self._read()}, **own}
        kept = [row.model_dump(mode="json") for row in list(rows.values())[-_MOST_ROWS:]]
        text = json.dumps({"versions": self._versions, "rows": kept}, separators=(",", ":"))
        with suppress(StoreError):  # advisory; storing the output in the same folder reports the same error
            make_folder(self._path.parent)
            write_atomically(self._path, text.encode(), durable=False)

    def _read(self) -> Iterable[ProfileRow]:
        if self._path is None or not self._path.is_file():
            return []
        try:
            found = json.loads(read_limited(self._path, _MOST_BYTES))
            if found["versions"] != self._versions:
                return []
            return [ProfileRow.model_validate(row) for row in found["rows"]]
        except (MediaError, ValueError, KeyError, TypeError, ValidationError):
            return []

    def _take(self, row: ProfileRow) -> None:
        group = Group(**row.model_dump(include=set(Group._fields)))
        found = _Width(deque(row.seconds, maxlen=_KEPT), row.peak)
        self._widths.setdefault(group, {})[row.width] = found
        if row.peak is not None:
            self._rise(found, group, row.width, row.peak)

    def _width(self, group: Group, width: int) -> _Width:
        widths = self._widths.get(group)
        if widths is None:
            widths = self._widths[group] = {}
        if width not in widths:
            widths[width] = _Width()
        return widths[width]

    def _rise(self, found: _Width, group: Group, width: int, peak: int) -> None:
        found.peak = max(found.peak or 0, peak)
        known = self._peaks.setdefault(unthreaded(group), {})
        if peak > known.get(width, -1):
            known[width] = peak
            self._min_peaks.clear()
            self._start_peaks.clear()
        self._greatest[group.device] = max(self._greatest.get(group.device, 0), peak)

    @staticmethod
    def _key(row: ProfileRow) -> tuple[object, ...]:
        return row.generator, row.version, row.shape, row.device, row.dtype, row.threads, row.call, row.width
