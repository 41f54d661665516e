"""Watching an engine: a Watcher is told of every piece of work in plain values, in the engine's thread.

A call must return within microseconds and must not raise; keep what comes in a deque and look at it elsewhere. Times
are seconds of the engine's clock (`time.perf_counter`), sizes are bytes, requests are whole numbers that rise in the
order of acceptance. This module knows nothing of the loop.

Try it: subclass Watcher, print in `stepped`, and give it to ``Engine("cpu", watchers=[yours])``
"""

from __future__ import annotations

from collections.abc import Callable, Sequence


class Watcher:
    """Does nothing; override what you want to see."""

    def accepted(self, request: int, generator: str, client: str, background: bool, at: float) -> None:
        """A request came in."""

    def loaded(self, generator: str, device: str, size: int, begun: float, ended: float) -> None:
        """A model came onto the device, taking `size` bytes."""

    def evicted(self, generator: str, device: str, place: str, size: int, at: float) -> None:
        """A model left the device; `place` is where it is now: ``host`` or ``dropped``."""

    def started(self, request: int, generator: str, steps: int, begun: float, ended: float) -> None:
        """The first state stands; `steps` are to be done."""

    def stepped(
        self, requests: tuple[int, ...], positions: tuple[int, ...], generator: str, begun: float, ended: float
    ) -> None:
        """These requests moved one step on, together, each to its position."""

    def stumbled(self, requests: tuple[int, ...], generator: str, reason: str, begun: float, ended: float) -> None:
        """A step of these failed; their states are as before. What follows is told by other calls."""

    def previewed(self, request: int, generator: str, begun: float, ended: float) -> None:
        """A preview was made, or tried."""

    def saved(self, request: int, generator: str, size: int, begun: float, ended: float) -> None:
        """The state was saved, in a file of `size` bytes."""

    def finished(self, request: int, generator: str, begun: float, ended: float) -> None:
        """The media was made of the last state."""

    def ended(self, request: int, generator: str, outcome: str, at: float) -> None:
        """A request's end, exactly once: ``finished``, ``failed`` or ``cancelled``."""

    def memory(self, device: str, used: int, budget: int) -> None:
        """What the ledger holds on the device, after a change."""


class Watchers(Watcher):
    """Several watchers as one, told in order."""

    def __init__(self, several: Sequence[Watcher]) -> None:
        for name in (name for name in vars(Watcher) if not name.startswith("_")):
            setattr(self, name, _each([getattr(watcher, name) for watcher in several]))


def _each(told: list[Callable[..., None]]) -> Callable[..., None]:
    def tell(*what: object) -> None:
        for one in told:
            one(*what)

    return tell
