"""What was learned by measuring: seconds and peak memory of calls, by generator, shape, width, device, dtype, threads.

Steps and finishes are timed; of `start` the peak alone is kept, at width 1. Kept in one small JSON file, which is
written whole or not at all, holds for one set of library versions, and is only advice: a damaged or unwritable file
costs what was learned and nothing else. This module knows nothing of the loop.

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
_KEPT = 9  # seconds kept of each width; their median counts
_ENOUGH = 2  # seconds of a width to judge by
_MOST_BYTES = 4 << 20
_MOST_ROWS = 2000


@lru_cache(maxsize=4096)
def unthreaded(group: Group) -> Group:
    """The group whatever its threads. Asked for at every step, so it is remembered."""
    return group._replace(threads=None)


class Group(NamedTuple):
    """Calls that are alike: `shape` is the batch key in short, `call` is ``step``, ``start`` or ``finish``."""

    generator: str
    version: str
    shape: str
    device: str
    dtype: str
    threads: int | None = None
    call: str = "step"


def finishes(group: Group) -> Group:
    """The finishes of states whose steps are of this group."""
    return group._replace(call="finish")


def shape_of(key: Hashable) -> str:
    """A batch key in short: its repr, or a hash of it where that is long."""
    text = repr(key)
    return text if len(text) <= 60 else hashlib.sha256(text.encode()).hexdigest()[:16]


class Row(BaseModel):
    """One width of one group: its latest seconds, and the most memory that a call took besides, in bytes."""

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
    first_s: float | None = None  # the first step of a process builds kernels: it counts until there is another

    def median_s(self) -> float | None:
        """Worked out when it is asked for: a step that nobody can share needs it not."""
        kept = sorted(self.seconds)
        return kept[len(kept) // 2] if kept else self.first_s


class Measured:
    """The table, and its file if it has one. `versions` are those that it holds for."""

    def __init__(self, path: Path | None = None, versions: Mapping[str, str] | None = None) -> None:
        self._path, self._versions = path, dict(versions or {})
        self._widths: dict[Group, dict[int, _Width]] = {}
        self._turns: dict[Group, int] = {}
        self._greatest: dict[str, int] = {}
        self._peaks: dict[Group, dict[int, int]] = {}  # whatever the threads: memory hardly depends on them
        self._changed, self._saved_at = False, -math.inf
        for row in self._read():
            self._take(row)

    def learn(self, group: Group, width: int, seconds: float, peak: int | None) -> None:
        """Take in one call that succeeded; `peak` is the memory that it took besides what was held, in bytes."""
        found = self._width(group, width)
        self._changed = True
        self._turns[group] = self._turns.get(group, 0) + 1
        if peak is not None:
            self._rise(found, group, width, peak)
        if found.first_s is None:
            found.first_s = seconds
        else:
            found.seconds.append(seconds)

    def learn_peak(self, group: Group, peak: int | None) -> None:
        """Take in the memory of one call that is not timed."""
        if peak is not None:
            found = self._width(group, 1)
            self._changed = self._changed or peak > (found.peak or -1)
            self._rise(found, group, 1, peak)

    def seconds(self, group: Group) -> Mapping[int, float]:
        """Median seconds of a step for each width that was tried."""
        widths = self._widths.get(group, {})
        medians = {width: each.median_s() for width, each in list(widths.items())}
        return {width: median for width, median in medians.items() if median is not None}

    def sure(self, group: Group) -> Collection[int]:
        """The widths that were measured often enough to judge by."""
        widths = self._widths.get(group, {})
        return [width for width, each in widths.items() if len(each.seconds) >= _ENOUGH]

    def turn(self, group: Group) -> int:
        """How many steps were taken in since this process began."""
        return self._turns.get(group, 0)

    def peak(self, group: Group, width: int) -> int:
        """Bytes that a step takes besides what is held: as measured, else in proportion to the nearest narrower
        width, else 0: what was never measured is not known.
        """
        known = self._peaks.get(unthreaded(group), {})
        if width in known:
            return known[width]
        narrower = max((at for at in known if at < width), default=None)
        if narrower is not None:
            return known[narrower] * width // narrower
        return min(known.values(), default=0)

    def greatest_peak(self, device: str) -> int:
        """The most that any call on a device is known to take."""
        return self._greatest.get(device, 0)

    def weighed(self, group: Group, width: int) -> bool:
        """Whether the memory of such a call was measured before."""
        return width in self._peaks.get(unthreaded(group), {})

    def most_peak(self, group: Group) -> int:
        """The most that any call of a lone state of this shape takes: starting, stepping or finishing it."""
        return max(self.peak(group._replace(call=call), 1) for call in CALLS)

    def least_peak(self, generator: str, version: str, device: str, dtype: str) -> int:
        """The least that `most_peak` is for any shape of the generator: of one that was never met nothing else is
        known.
        """
        asked = (generator, version, device, dtype)
        shapes = {
            group._replace(call="step")
            for group in self._peaks
            if (group.generator, group.version, group.device, group.dtype) == asked
        }
        return min((self.most_peak(group) for group in shapes), default=0)

    def rows(self) -> list[Row]:
        """Everything, sorted by generator, shape, device, dtype and width."""
        rows = [
            Row(**group._asdict(), width=width, seconds=tuple(each.seconds), peak=each.peak)
            for group, widths in list(self._widths.items())
            for width, each in list(widths.items())
        ]
        return sorted(
            rows,
            key=lambda row: (row.generator, row.shape, row.device, row.dtype, row.call, row.threads or 0, row.width),
        )

    def save(self, *, every_s: float = 0) -> None:
        """Write the file, if there is one and something new, and not within `every_s` seconds of the last time; rows
        that another process wrote meanwhile are kept.
        """
        now = time.monotonic()
        if self._path is None or not self._changed or now - self._saved_at < every_s:
            return
        self._changed, self._saved_at = False, now
        own = {self._key(row): row for row in self.rows()}
        rows = {**{self._key(row): row for row in self._read()}, **own}
        kept = [row.model_dump(mode="json") for row in list(rows.values())[-_MOST_ROWS:]]
        text = json.dumps({"versions": self._versions, "rows": kept}, separators=(",", ":"))
        with suppress(StoreError):  # advice only; what is made goes to the same folder and tells of the same fault
            make_folder(self._path.parent)
            write_atomically(self._path, text.encode(), durable=False)

    def _read(self) -> Iterable[Row]:
        if self._path is None or not self._path.is_file():
            return []
        try:
            found = json.loads(read_limited(self._path, _MOST_BYTES))
            if found["versions"] != self._versions:
                return []
            return [Row.model_validate(row) for row in found["rows"]]
        except (MediaError, ValueError, KeyError, TypeError, ValidationError):
            return []

    def _take(self, row: Row) -> None:
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
        known[width] = max(known.get(width, 0), peak)
        self._greatest[group.device] = max(self._greatest.get(group.device, 0), peak)

    @staticmethod
    def _key(row: Row) -> tuple[object, ...]:
        return row.generator, row.version, row.shape, row.device, row.dtype, row.threads, row.call, row.width
