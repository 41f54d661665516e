"""`cached_property`: as in functools, with a lock for each instance.

Up to Python 3.11 `functools.cached_property` holds one lock for all instances of a class while it computes, so one slow
video would block all other media.

Try it: ``pytest tests/studio/test_caching.py``
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar, overload

T = TypeVar("T")


class cached_property(Generic[T]):
    """A property that is computed once for each instance and kept in its `__dict__`, under its own name.

    Threads that read the property of the same instance wait for the computation; other instances do not block. A
    computation that raises is repeated at the next access. The instance must have a `__dict__`; it may be frozen, and
    can be copied and pickled while no computation runs.
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute, self.__doc__ = compute, compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name, self._lock = name, f"{name} lock"

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type | None = None) -> T: ...
    def __get__(self, instance: object, owner: type | None = None) -> Self | T:
        if instance is None:
            return self
        values = instance.__dict__
        with values.setdefault(self._lock, threading.RLock()):  # atomic: all threads get one lock
            try:
                if self._name not in values:
                    values[self._name] = self._compute(instance)
                found: T = values[self._name]
            finally:
                values.pop(self._lock, None)
        return found
