"""Calling plugins: whoever has a plugin called asks for it, and another runs it.

What calls plugins is written as a `Calling`: a Python generator that yields a `Call` and is sent what the plugin
returned, or has thrown into it what it raised. So the thread that runs the call can be another than the one that asked,
and where one is stuck in a call the next takes over right there (see `worker`). `drive` runs a Calling to its end. This
module knows nothing of threads or requests.

Try it: ``python -c "from studio.engine.calls.call import *; print(directly(ask('x', lambda: 1 + 1, 60)))"``
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
    """`work` is to be done for a generator, and may take `limit_s` seconds. Not frozen: that doubles what it costs."""

    generator: str
    work: Callable[[], object]
    limit_s: float

    def run(self) -> object:
        """Do it, here and now."""
        with torch_setup.inference():
            return self.work()

    def outcome(self) -> Outcome:
        """Do it in a thread that is in inference mode: what it returns and None, or None and what it raised, whatever
        that is.
        """
        try:
            return self.work(), None
        except GeneratorExit:  # thrown into a Calling, it would close it
            return None, RuntimeError("GeneratorExit")
        except BaseException as error:  # SystemExit included: a plugin ends its own request only
            return None, error


Calling = Generator[Call, Any, T]


def ask(generator: str, work: Callable[[], T], limit_s: float) -> Calling[T]:
    """Have `work` done for a generator, in at most `limit_s` seconds. Raises what it raises, or TimedOut."""
    made: T = yield Call(generator, work, limit_s)
    return made


def drive(calling: Calling[T], run: Callable[[Call], object]) -> T:
    """Run each call by `run`, to the end. Returns what `calling` returns, raises what it raises."""
    try:
        call = next(calling)
        while True:
            try:
                made = run(call)
            except BaseException as error:  # the asker's to catch
                call = calling.throw(error)
            else:
                call = calling.send(made)
    except StopIteration as end:
        return cast(T, end.value)


def directly(calling: Calling[T]) -> T:
    """Run its calls here and now, without a limit."""
    return drive(calling, Call.run)
