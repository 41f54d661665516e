"""Who serves the calls of `attend` in this thread for now, and who has served. Imports no torch.

The engine lends each call of a generator the backends that plugins offer and the table of its data folder, and notes
who served it. Both hold for the block that asks for them, in its own thread. Knows nothing of kernels or requests.

Try it: ``python -c "from studio.attention.serving import *; print(lent())"``
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

from studio.attention.backend import Backend
from studio.caching import cached_property
from studio.devices import graphs

if TYPE_CHECKING:
    from studio.attention.dispatch import Dispatch


class Serving:
    """Studio's own backends, those of plugins (`more`), and the table in the data folder `home` (None: the usual)."""

    def __init__(self, more: Iterable[Backend] = (), home: Path | None = None) -> None:
        self._more, self._home = tuple(more), home

    @cached_property
    def dispatch(self) -> Dispatch:
        """What asks them; made, and torch imported, when it is first needed."""
        from studio.attention.dispatch import Dispatch
        from studio.attention.table import Table

        return Dispatch(self._more, Table.load(self._home))


class _Block:
    """What holds within a block: who serves, and who records it. A class: it costs a third of a generator."""

    __slots__ = ("_token", "recorders", "serving", "used")

    def __init__(self, serving: Serving | None, recorders: tuple[set[str], ...]) -> None:
        self.used: set[str] = set()
        self.serving, self.recorders = serving, (*recorders, self.used)

    def __enter__(self) -> set[str]:
        self._token = _within.set(self)
        return self.used

    def __exit__(self, *error: object) -> None:
        _within.reset(self._token)


_within: ContextVar[_Block | None] = ContextVar("studio_attention", default=None)


def lent() -> Serving | None:
    """What serves this thread, if anything was lent to it."""
    block = _within.get()
    return block.serving if block else None


def lending(serving: Serving | None) -> AbstractContextManager[set[str]]:
    """Let it serve this thread until the end of the block, and collect the names of all backends that serve there; None
    is what serves a program that lends nothing.
    """
    block = _within.get()
    return _Block(serving, block.recorders if block else ())


def recorded() -> AbstractContextManager[set[str]]:
    """Collect the names of all backends that serve this thread until the end of the block."""
    return lending(lent())


def served(name: str) -> None:
    """Tell those who record that a backend has served."""
    block = _within.get()
    for used in block.recorders if block else ():
        used.add(name)


# A step that is repeated was served by those that served it once.
graphs.register(graphs.Observer(lent, recorded, served))
