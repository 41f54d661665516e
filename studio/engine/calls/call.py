"""Calls of plugins: code that needs one yields it, and the driver runs it.

Code that calls plugins is a `Calling`: a Python generator that yields a `Call` and receives what the plugin returned
or raised. So another thread can continue it when a call hangs (see `worker`). `drive` runs a Calling to its end.

Try it: ``python -c "from studio.engine.calls.call import *; print(run_inline(ask('x', lambda: 1 + 1, 60)))"``
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from studio.devices import torch_setup

T = TypeVar("T")
Outcome = tuple[object, BaseException | None]


@dataclass(eq=False, slots=True)
class Call:
    """`work` to run for a generator, with a timeout of `limit_s` seconds. Not frozen: that doubles its cost."""

    generator: str
    work: Callable[[], object]
    limit_s: float

    def run(self) -> object:
        """Run it inline."""
        with torch_setup.inference():
            return self.work()

    def outcome(self) -> Outcome:
        """Run it, in a thread that is in inference mode. Returns (result, None) or (None, the exception)."""
        try:
            return self.work(), None
        except GeneratorExit:  # thrown into a Calling, it would close it
            return None, RuntimeError("GeneratorExit")
        except BaseException as error:  # SystemExit included: a plugin ends its own request only
            return None, error


Calling = Generator[Call, Any, T]


def ask(generator: str, work: Callable[[], T], limit_s: float) -> Calling[T]:
    """Run `work` for a generator, with a timeout of `limit_s` seconds. Raises what it raises, or TimedOut."""
    made: T = yield Call(generator, work, limit_s)
    return made


def drive(calling: Calling[T], run: Callable[[Call], object]) -> T:
    """Run a Calling to its end, each call by `run`. Returns what `calling` returns, raises what it raises."""
    try:
        call = next(calling)
        while True:
            try:
                made = run(call)
            except BaseException as error:  # for the Calling to catch
                call = calling.throw(error)
            else:
                call = calling.send(made)
    except StopIteration as end:
        return cast(T, end.value)


def run_inline(calling: Calling[T]) -> T:
    """Run a Calling and its calls inline, without a timeout."""
    return drive(calling, Call.run)
