from __future__ import annotations

import copy
import pickle
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

import studio
from studio.caching import cached_property

WAIT_S = 500  # far longer than anything here takes: a bound for what hangs


class Slow:
    """Computes when told to."""

    def __init__(self):
        self.begun, self.go, self.computed, self.fails = threading.Event(), threading.Event(), 0, False

    @cached_property
    def value(self):
        """What it is."""
        self.begun.set()
        assert self.go.wait(WAIT_S)
        self.computed += 1
        if self.fails:
            raise ValueError("not now")
        return object()


def test_instances_do_not_wait_for_each_other():
    slow, quick = Slow(), Slow()
    quick.go.set()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(lambda: slow.value)
        assert slow.begun.wait(WAIT_S)
        quick.value  # noqa: B018 - it would hang here
        assert not first.done()
        slow.go.set()
        assert first.result(WAIT_S) is slow.value


def test_threads_that_ask_one_instance_get_one_value_computed_once():
    slow = Slow()
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(lambda: slow.value) for _ in range(8)]
        assert slow.begun.wait(WAIT_S)
        slow.go.set()
        assert {each.result(WAIT_S) for each in asked} == {slow.value}
    assert slow.computed == 1
    assert set(vars(slow)) == {"begun", "go", "computed", "fails", "value"}, "the lock is gone"


def test_a_failure_is_not_kept():
    slow = Slow()
    slow.go.set()
    slow.fails = True
    with pytest.raises(ValueError, match="not now"):
        _ = slow.value
    slow.fails = False
    assert slow.value is slow.value
    assert slow.computed == 2


@dataclass(frozen=True)
class Frozen:
    numbers: list[int] = field(default_factory=list)

    @cached_property
    def total(self) -> int:
        """The sum."""
        return sum(self.numbers)


def test_frozen_instances_are_cached_copied_and_pickled():
    frozen = Frozen([1, 2])
    assert frozen.total == 3
    frozen.numbers.append(4)
    assert frozen.total == 3
    for other in (copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen))):
        assert other.total == 3
    assert Frozen.total.__doc__ == "The sum."


class Held(studio.Image):
    """A picture whose encoding takes until it is told."""

    go, begun = threading.Event(), threading.Event()

    def _content(self):
        self.begun.set()
        assert self.go.wait(WAIT_S)
        return super()._content()


def test_a_picture_does_not_wait_for_the_hash_of_another():
    array = np.zeros((2, 2, 3), np.uint8)
    held = Held.from_array(array)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(lambda: held.sha256)
        assert Held.begun.wait(WAIT_S)
        expected = studio.Image.from_array(array).sha256  # it would hang here
        Held.go.set()
        assert slow.result(WAIT_S) == expected


def test_nothing_uses_the_property_of_functools():
    root = Path(studio.__file__).parent.parent
    for path in [*root.glob("studio/**/*.py"), *root.glob("plugins/**/*.py")]:
        taken = re.search(r"from functools import.*\bcached_property|@functools\.cached_property", path.read_text())
        assert not taken, path
