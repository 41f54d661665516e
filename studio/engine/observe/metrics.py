"""Metrics of an engine: counters, gauges and histograms in Prometheus' text format (version 0.0.4).

Not `prometheus_client`, which brings an HTTP server and 113 modules, and takes longer to import (75 ms) than
`studio --help` takes to answer.

Try it: ``with studio.Studio() as s: s.image("a red apple"); print(s.metrics())``
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from studio.engine.observe.watcher import Watcher

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BOUNDS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_Labels = tuple[tuple[str, str], ...]


@dataclass
class _Histogram:
    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    total: float = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect.bisect_left(BOUNDS_S, seconds)] += 1
        self.total += seconds


class Metrics(Watcher):
    """Counts events; `text` may be called from any thread."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._values: dict[str, dict[_Labels, float]] = {}
        self._histograms: dict[str, dict[_Labels, _Histogram]] = {}
        self._arrived: dict[int, float] = {}
        self._set("studio_requests_unfinished", 0)

    def text(self) -> str:
        """The exposition, sorted by name and labels."""
        with self._guard:
            lines = [line for name in sorted({*self._values, *self._histograms}) for line in self._family(name)]
        return "\n".join(lines) + "\n"

    def accepted(self, request: int, generator: str, client: str, background: bool, at: float) -> None:
        """Count a request."""
        self._arrived[request] = at
        self._add("studio_requests_total", 1, generator=generator)
        self._set("studio_requests_unfinished", len(self._arrived))

    def loaded(self, generator: str, device: str, size: int, begun: float, ended: float) -> None:
        """Count and time a load."""
        self._time("studio_load_seconds", ended - begun, generator=generator)

    def evicted(self, generator: str, device: str, place: str, size: int, at: float) -> None:
        """Count an eviction."""
        self._add("studio_evictions_total", 1, generator=generator, place=place)

    def stepped(
        self, requests: tuple[int, ...], positions: tuple[int, ...], generator: str, begun: float, ended: float
    ) -> None:
        """Time a step and count its requests."""
        self._time("studio_step_seconds", ended - begun, generator=generator)
        self._add("studio_request_steps_total", len(requests), generator=generator)

    def step_failed(self, requests: tuple[int, ...], generator: str, reason: str, begun: float, ended: float) -> None:
        """Count a step that failed."""
        self._add("studio_failed_steps_total", 1, generator=generator)

    def saved(self, request: int, generator: str, size: int, begun: float, ended: float) -> None:
        """Time a save."""
        self._time("studio_save_seconds", ended - begun, generator=generator)

    def ended(self, request: int, generator: str, outcome: str, at: float) -> None:
        """Count an ended request, and time it."""
        self._add("studio_requests_ended_total", 1, generator=generator, outcome=outcome)
        self._time("studio_request_seconds", at - self._arrived.pop(request, at), generator=generator)
        self._set("studio_requests_unfinished", len(self._arrived))

    def memory(self, device: str, used: int, budget: int) -> None:
        """Record the memory in use."""
        self._set("studio_memory_used_bytes", used, device=device)
        self._set("studio_memory_budget_bytes", budget, device=device)

    def _add(self, name: str, amount: float, **labels: str) -> None:
        with self._guard:
            values, key = self._values.setdefault(name, {}), tuple(labels.items())
            values[key] = values.get(key, 0) + amount

    def _set(self, name: str, value: float, **labels: str) -> None:
        with self._guard:
            self._values.setdefault(name, {})[tuple(labels.items())] = value

    def _time(self, name: str, seconds: float, **labels: str) -> None:
        with self._guard:
            self._histograms.setdefault(name, {}).setdefault(tuple(labels.items()), _Histogram()).add(seconds)

    def _family(self, name: str) -> Iterator[str]:
        yield f"# HELP {name} {_HELP[name]}"
        if name in self._values:
            yield f"# TYPE {name} {'counter' if name.endswith('_total') else 'gauge'}"
            yield from (f"{name}{_braces(key)} {value!r}" for key, value in sorted(self._values[name].items()))
            return
        yield f"# TYPE {name} histogram"
        for key, histogram in sorted(self._histograms[name].items()):
            count = 0
            for bound, more in zip((*BOUNDS_S, "+Inf"), histogram.counts, strict=True):
                count += more
                yield f"{name}_bucket{_braces((*key, ('le', str(bound))))} {count}"
            yield f"{name}_sum{_braces(key)} {histogram.total!r}"
            yield f"{name}_count{_braces(key)} {count}"


def _braces(labels: _Labels) -> str:
    return "{" + ",".join(f'{name}="{_escape(value)}"' for name, value in labels) + "}" if labels else ""


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


_HELP = {
    "studio_requests_total": "Requests accepted.",
    "studio_requests_ended_total": "Requests ended, by outcome.",
    "studio_requests_unfinished": "Requests accepted and not ended.",
    "studio_request_seconds": "Seconds from a request's acceptance to its end.",
    "studio_request_steps_total": "Steps of requests; a step of four requests counts four.",
    "studio_step_seconds": "Seconds per step, for any batch size.",
    "studio_failed_steps_total": "Steps that failed and left their states unchanged.",
    "studio_load_seconds": "Seconds per model load.",
    "studio_save_seconds": "Seconds per saved state.",
    "studio_evictions_total": "Models evicted from their device, by place (host or dropped).",
    "studio_memory_used_bytes": "Bytes in use on a device.",
    "studio_memory_budget_bytes": "Memory budget of a device in bytes.",
}
