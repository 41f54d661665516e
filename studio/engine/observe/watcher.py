"""Watchers: callbacks for every event of an engine, with plain values, in the engine's thread.

A callback must return within microseconds and must not raise; put the data into a deque and process it elsewhere. Times
are seconds of the engine's clock (`time.perf_counter`), sizes are bytes, requests are integers that rise in the order
of acceptance.

Try it: subclass Watcher, print in `stepped`, and give it to ``Engine("cpu", watchers=[yours])``
"""

from __future__ import annotations

from collections.abc import Callable, Sequence


class Watcher:
    """Does nothing; override the callbacks that you need."""

    def accepted(self, request: int, generator: str, client: str, background: bool, at: float) -> None:
        """A request was accepted."""

    def loaded(self, generator: str, device: str, size: int, begun: float, ended: float) -> None:
        """A model was loaded or restored; it takes `size` bytes of the device."""

    def evicted(self, generator: str, device: str, place: str, size: int, at: float) -> None:
        """A model was evicted from the device; `place` is ``host`` (offloaded) or ``dropped``."""

    def started(self, request: int, generator: str, steps: int, begun: float, ended: float) -> None:
        """A request has started; it has `steps` steps."""

    def stepped(
        self, requests: tuple[int, ...], positions: tuple[int, ...], generator: str, begun: float, ended: float
    ) -> None:
        """A step of these requests is complete; each is at its new position."""

    def step_failed(self, requests: tuple[int, ...], generator: str, reason: str, begun: float, ended: float) -> None:
        """A step of these requests failed; their states are unchanged. Other callbacks report what follows."""

    def previewed(self, request: int, generator: str, begun: float, ended: float) -> None:
        """A preview was made, or failed."""

    def saved(self, request: int, generator: str, size: int, begun: float, ended: float) -> None:
        """A state was saved, in a file of `size` bytes."""

    def finished(self, request: int, generator: str, begun: float, ended: float) -> None:
        """The output was made from the last state."""

    def ended(self, request: int, generator: str, outcome: str, at: float) -> None:
        """A request has ended: ``finished``, ``failed`` or ``cancelled``. Called exactly once per request."""

    def memory(self, device: str, used: int, budget: int) -> None:
        """The memory in use on the device, after a change."""


class Watchers(Watcher):
    """Several watchers as one, called in order."""

    def __init__(self, several: Sequence[Watcher]) -> None:
        for name in (name for name in vars(Watcher) if not name.startswith("_")):
            calls = [getattr(watcher, name) for watcher in several]
            empty = getattr(Watcher, name)
            setattr(self, name, _each([call for call in calls if getattr(call, "__func__", call) is not empty]))


def _each(targets: list[Callable[..., None]]) -> Callable[..., None]:
    def call_all(*what: object) -> None:
        for one in targets:
            one(*what)

    return call_all
