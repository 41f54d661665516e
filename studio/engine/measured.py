"""What was learned by measuring: seconds and peak memory of steps, by generator, shape, width, device and dtype.

Kept in one small JSON file, which is written whole or not at all, holds for one set of library versions, and is only
advice: a damaged or unwritable file costs what was learned and nothing else. This module knows nothing of the loop.

Try it: ``studio doctor``
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Collection, Hashable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from studio.errors import MediaError, StoreError
from studio.files import make_folder, read_limited, write_atomically

MEASURED = "measured.json"  # in the data folder
_KEPT = 9  # seconds kept of each width; their median counts
_ENOUGH = 2  # seconds of a width to judge by
_MOST_BYTES = 4 << 20
_MOST_ROWS = 2000


@dataclass(frozen=True)
class Group:
    """Steps that are alike: `shape` is the batch key in short."""

    generator: str
    version: str
    shape: str
    device: str
    dtype: str
    threads: int | None = None


def shape_of(key: Hashable) -> str:
    """A batch key in short: its repr, or a hash of it where that is long."""
    text = repr(key)
    return text if len(text) <= 60 else hashlib.sha256(text.encode()).hexdigest()[:16]


class Row(BaseModel):
    """One width of one group: median seconds of a step, and the most memory it took besides, in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    generator: str
    version: str
    shape: str
    device: str
    dtype: str
    threads: int | None = None
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
    warm: bool = False  # the first step of a process at a width builds kernels: it counts until there is another


class Measured:
    """The table, and its file if it has one. `versions` are those that it holds for."""

    def __init__(self, path: Path | None = None, versions: Mapping[str, str] | None = None) -> None:
        self._path, self._versions = path, dict(versions or {})
        self._widths: dict[Group, dict[int, _Width]] = {}
        self._known: dict[Group, dict[int, float]] = {}
        self._turns: dict[Group, int] = {}
        self._changed = False
        for row in self._read():
            self._take(row)

    def learn(self, group: Group, width: int, seconds: float, peak: int | None) -> None:
        """Take in one step that succeeded; `peak` is the memory that it took besides what was held, in bytes."""
        found = self._widths.setdefault(group, {}).setdefault(width, _Width())
        self._changed = True
        self._turns[group] = self._turns.get(group, 0) + 1
        if peak is not None:
            found.peak = max(found.peak or 0, peak)
        if found.warm:
            found.seconds.append(seconds)
        found.warm = True
        self._settle(group, width, found.seconds or (seconds,))

    def seconds(self, group: Group) -> Mapping[int, float]:
        """Median seconds of a step for each width that was tried."""
        return self._known.get(group, {})

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
        known = {at: each.peak for at, each in self._widths.get(group, {}).items() if each.peak is not None}
        if width in known:
            return known[width]
        narrower = max((at for at in known if at < width), default=None)
        if narrower is not None:
            return known[narrower] * width // narrower
        return min(known.values(), default=0)

    def least_peak(self, generator: str, version: str, device: str, dtype: str) -> int:
        """The least that any step of the generator was seen to take."""
        peaks = [
            each.peak
            for group, widths in self._widths.items()
            if (group.generator, group.version, group.device, group.dtype) == (generator, version, device, dtype)
            for each in widths.values()
            if each.peak is not None
        ]
        return min(peaks, default=0)

    def rows(self) -> list[Row]:
        """Everything, sorted by generator, shape, device, dtype and width."""
        rows = [
            Row(**vars(group), width=width, seconds=tuple(each.seconds), peak=each.peak)
            for group, widths in list(self._widths.items())
            for width, each in list(widths.items())
        ]
        return sorted(rows, key=lambda row: (row.generator, row.shape, row.device, row.dtype, row.width))

    def save(self) -> None:
        """Write the file, if there is one and something new; rows that another process wrote meanwhile are kept."""
        if self._path is None or not self._changed:
            return
        self._changed = False
        own = {self._key(row): row for row in self.rows()}
        rows = {**{self._key(row): row for row in self._read()}, **own}
        kept = [row.model_dump(mode="json") for row in list(rows.values())[-_MOST_ROWS:]]
        text = json.dumps({"versions": self._versions, "rows": kept}, separators=(",", ":"))
        with suppress(StoreError):  # advice only; what is made goes to the same folder and tells of the same fault
            make_folder(self._path.parent)
            write_atomically(self._path, text.encode())

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
        group = Group(**row.model_dump(include=set(Group.__dataclass_fields__)))
        found = _Width(deque(row.seconds, maxlen=_KEPT), row.peak)
        self._widths.setdefault(group, {})[row.width] = found
        if found.seconds:
            self._settle(group, row.width, found.seconds)

    def _settle(self, group: Group, width: int, seconds: Collection[float]) -> None:
        self._known.setdefault(group, {})[width] = sorted(seconds)[len(seconds) // 2]

    @staticmethod
    def _key(row: Row) -> tuple[object, ...]:
        return row.generator, row.version, row.shape, row.device, row.dtype, row.threads, row.width
