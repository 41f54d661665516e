"""Who serves the calls of `attend` in this thread for now, and who has served. Imports no torch.

The engine lends each call of a generator the backends that plugins offer and the table of its data folder, and notes
who served it. Both hold for the block that asks for them, in its own thread. Knows nothing of kernels or requests.

Try it: ``python -c "from studio.attention.serving import *; print(lent())"``
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from studio.attention.backend import Backend

if TYPE_CHECKING:
    from studio.attention.dispatch import Dispatch

T = TypeVar("T")


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


_lent: ContextVar[Serving | None] = ContextVar("studio_attention_lent", default=None)
_recorders: ContextVar[tuple[set[str], ...]] = ContextVar("studio_attention_recorders", default=())


def lent() -> Serving | None:
    """What serves this thread, if anything was lent to it."""
    return _lent.get()


class _Within(Generic[T]):
    """A context variable's value within a block, which is given `what`. A class: it costs a third of a generator."""

    __slots__ = ("_token", "_value", "_variable", "_what")

    def __init__(self, variable: ContextVar[Any], value: object, what: T) -> None:
        self._variable, self._value, self._what = variable, value, what

    def __enter__(self) -> T:
        self._token = self._variable.set(self._value)
        return self._what

    def __exit__(self, *error: object) -> None:
        self._variable.reset(self._token)


def lending(serving: Serving | None) -> AbstractContextManager[None]:
    """Let it serve this thread until the end of the block; None is what serves a program that lends nothing."""
    return _Within(_lent, serving, None)


def recorded() -> AbstractContextManager[set[str]]:
    """Collect the names of all backends that serve this thread until the end of the block."""
    used: set[str] = set()
    return _Within(_recorders, (*_recorders.get(), used), used)


def served(name: str) -> None:
    """Tell those who record that a backend has served."""
    for used in _recorders.get():
        used.add(name)
