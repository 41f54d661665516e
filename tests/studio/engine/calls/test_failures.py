from __future__ import annotations

import gc
import weakref

import pytest

from studio.engine.calls.failures import as_error
from studio.errors import GeneratorFailed, MediaError, OutOfMemory, StudioError


class Thing:
    """Something whose life can be watched."""


def raised(error):
    try:
        thing = Thing()
        raised.thing = weakref.ref(thing)
        raise error
    except BaseException as caught:
        return caught


@pytest.mark.parametrize("error", [ValueError("x"), MediaError("x"), SystemExit(1), MemoryError()])
def test_no_frame_stays_alive(error):
    made = as_error("g", "step 1", raised(error))
    gc.collect()
    assert raised.thing() is None
    assert "in raised" in made.traceback_text


def test_errors_of_studio_stay_themselves():
    error = MediaError("broken")
    assert as_error("g", "start", raised(error)) is error


@pytest.mark.parametrize(
    "text",
    ["CUDA out of memory. Tried", "DefaultCPUAllocator: can't allocate memory: you tried", "not enough memory: x"],
)
def test_what_torch_says_of_memory_is_understood(text):
    made = as_error("g", "step 1", RuntimeError(text))
    assert isinstance(made, OutOfMemory)
    assert "smaller" in made.hint
    assert not isinstance(as_error("g", "step 1", RuntimeError("shape mismatch")), OutOfMemory)


def test_the_reason_is_bounded():
    made = as_error("g", "step 1", ValueError("x" * 10**6))
    assert isinstance(made, GeneratorFailed)
    assert len(made.message) < 1000


class Raises:
    """Whatever is looked up in it raises."""

    def __get__(self, instance, owner=None):
        raise SystemExit("looked at")


def hostile(base, **more):
    return type("Hostile", (base,), more)


class Nameless(type):
    """A class whose name raises."""

    __name__ = Raises()


class Loud(str):
    """A text that raises."""

    __slots__ = ()
    strip = split = encode = splitlines = __getitem__ = __len__ = __iter__ = __format__ = Raises()


def looped():
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__context__ = other, one
    return one


def nested(depth):
    error = ValueError("within")
    for _ in range(depth):
        error = ExceptionGroup("around", [error])
    return error


def chained(length):
    error = ValueError("first")
    for index in range(length):
        after = ValueError(index)
        after.__cause__, error = error, after
    return error


OVERRIDDEN = ("__str__", "__repr__", "__hash__", "__eq__", "__reduce__", "__class__", "__cause__", "__traceback__",
              "__context__", "__notes__", "args", "message", "hint", "traceback_text", "__format__")  # fmt: skip
HOSTILE = {
    **{
        f"{base.__name__} {name}": lambda base=base, name=name: hostile(base, **{name: Raises()})(*["x"])
        for base in (ValueError, BaseException, StudioError, SystemExit, MemoryError, RuntimeError)
        for name in OVERRIDDEN
    },
    "unhashable": lambda: hostile(ValueError, __hash__=None)("x"),
    "text is a number": lambda: hostile(ValueError, __str__=lambda self: 3)("x"),
    "text of another class": lambda: hostile(ValueError, __str__=lambda self: Loud("x"))("x"),
    "a message of another class": lambda: StudioError(Loud("x")),
    "no message": lambda: hostile(StudioError, __init__=lambda self: None)(),
    "an exit code that is none": lambda: hostile(StudioError, exit_code="3")("x"),
    "not UTF-8": lambda: ValueError("\ud800\x1b[2J\0"),
    "a message that is not UTF-8": lambda: StudioError("\ud800"),
    "huge": lambda: ValueError("x" * 10**7),
    "a huge message": lambda: StudioError("x" * 10**7),
    "huge code": lambda: SystemExit(10**5000),
    "code raises": lambda: SystemExit(hostile(object, __repr__=Raises())()),
    "nameless": lambda: Nameless("Nameless", (ValueError,), {})("x"),
    "group": lambda: BaseExceptionGroup("g", [KeyboardInterrupt(), hostile(ValueError, __str__=Raises())("x")]),
    "group raises": lambda: hostile(ExceptionGroup, exceptions=Raises())("g", [ValueError()]),
    "a loop": looped,
    "nested deeply": lambda: nested(3000),
    "a long chain": lambda: chained(3000),
    "damaged syntax error": lambda: SyntaxError("a", ("f", 1, 2, 3)),
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
def test_no_exception_is_too_odd_to_be_told_of(make):
    error = make()
    made = as_error("g", "step 1", raised(error))
    assert isinstance(made, GeneratorFailed)
    told = f"{made} {made!r} {made.traceback_text}"
    assert told.replace("\n", "").isprintable()
    assert len(made.message) < 1000
    assert len(made.traceback_text) <= 100_000
    assert raised.thing() is None, "no frame stays alive"


def test_a_plain_subclass_of_an_error_of_studio_stays_itself():
    error = hostile(MediaError, __doc__="An own kind.")("broken", hint="mend it")
    assert as_error("g", "start", raised(error)) is error
