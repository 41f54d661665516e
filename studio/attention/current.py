"""Which attention backends serve `attend` in the current thread, and a record of those that did. Imports no torch.

The engine runs each call of a generator under `use_dispatch`, with the backends of plugins and the measurements of its
data folder, and reads from it which backends ran. `studio.attention.dispatch` builds the `Dispatch` of these settings.

Try it: ``python -c "from studio.attention.current import *; print(current_settings())"``
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from pathlib import Path

from studio.attention.backend import Backend
from studio.devices import graphs


class DispatchSettings:
    """What a `Dispatch` is built from: backends of plugins, and the data folder whose measurements it follows.

    Building one imports torch, so `attend` does so at its first call.
    """

    def __init__(self, backends: Iterable[Backend] = (), home: Path | None = None) -> None:
        """`backends` are added to Studio's own; `home` is the data folder, None for the default one."""
        self.backends, self.home = tuple(backends), home


class _Block:
    """The settings and the records of one `with` block. A class, since a generator costs three times as much."""

    __slots__ = ("_token", "records", "settings", "used")

    def __init__(self, settings: DispatchSettings | None, records: tuple[set[str], ...]) -> None:
        self.used: set[str] = set()
        self.settings, self.records = settings, (*records, self.used)

    def __enter__(self) -> set[str]:
        self._token = _current.set(self)
        return self.used

    def __exit__(self, *error: object) -> None:
        _current.reset(self._token)


_current: ContextVar[_Block | None] = ContextVar("studio_attention", default=None)


def current_settings() -> DispatchSettings | None:
    """The settings of the innermost `use_dispatch` of this thread; None outside of all."""
    block = _current.get()
    return block.settings if block else None


def use_dispatch(settings: DispatchSettings | None) -> AbstractContextManager[set[str]]:
    """Serve `attend` by these settings in this thread until the end of the block; None is Studio's own backends.

    The block's value is a set that collects the names of the backends that ran.
    """
    block = _current.get()
    return _Block(settings, block.records if block else ())


def record_backends() -> AbstractContextManager[set[str]]:
    """A set that collects the names of all backends that run in this thread until the end of the block."""
    return use_dispatch(current_settings())


def record_backend(name: str) -> None:
    """Add a backend that ran to all records of this thread."""
    block = _current.get()
    for used in block.records if block else ():
        used.add(name)


# A CUDA graph that is replayed calls no Python: the backends of its recording are recorded again.
graphs.register(graphs.Observer(current_settings, record_backends, record_backend))
