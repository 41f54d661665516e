from __future__ import annotations

import gc
import weakref

import pytest

from studio.engine.failures import as_error
from studio.errors import GeneratorFailed, MediaError, OutOfMemory


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
