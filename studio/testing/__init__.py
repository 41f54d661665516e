"""The conformance suite for plugin authors: `check` a generator, or test it under pytest with `Conformance`.

It loads the generator's model, runs small requests directly and through the engine, and reports findings with numbers.
It imports neither torch nor pytest.

Try it: ``studio plugins check image``, or in a test::

    class TestInvert(studio.testing.Conformance):
        generator = Invert()
        inputs = {"strength": 0.5}
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from studio import devices
from studio.errors import StudioError
from studio.generator import Generator
from studio.testing import checks, gpu
from studio.testing.report import Finding, Report
from studio.testing.subject import Subject

__all__ = ["CHECKS", "Conformance", "Finding", "Report", "check"]

CHECKS: dict[str, Callable[[Subject], Finding]] = {
    "inputs declared": checks.inputs_declared,
    "bad inputs refused": checks.bad_inputs_refused,
    "imports no torch": checks.imports_no_torch,
    "seed decides": checks.seed_decides,
    "batched as alone": checks.batched_as_alone,
    "states stay valid": checks.states_stay_valid,
    "saved and resumed": checks.resumes,
    "cancels": checks.cancels,
    "memory": checks.memory_claimed,
    gpu.CHECK: lambda subject: gpu.runs_on_a_gpu(subject, checks.TOLERANCE),
}


def check(
    generator: Generator,
    inputs: Mapping[str, Any] | None = None,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    report: Callable[[Finding], None] = lambda finding: None,
) -> Report:
    """Check a generator and return the findings; `report` is called with each finding as it comes.

    `inputs` are values for its inputs; other required inputs get sample values (a short text, a small image). Choose
    few steps and a small size: about a dozen requests are run. Raises only UsageError, for a device that does not
    exist; an exception of the generator fails the check in which it is raised.
    """
    subject = Subject(generator, inputs or {}, devices.choose(device), dtype)
    findings = []
    for name in CHECKS:
        findings.append(_find(name, subject))
        report(findings[-1])
    name = generator.name if isinstance(generator, Generator) else repr(generator)
    return Report(str(name), subject.device, dtype, tuple(findings))


def _find(name: str, subject: Subject) -> Finding:
    try:
        return CHECKS[name](subject)
    except AssertionError as error:
        return Finding(name, "failed", str(error) or "an assertion of the plugin failed")
    except StudioError as error:
        return Finding(name, "failed", f"{error.message}; {error.hint}" if error.hint else error.message)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin may raise anything, SystemExit too
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{place.filename.rpartition('/')[2]}:{place.lineno}"
        return Finding(name, "failed", f"{type(error).__name__}: {str(error)[:300]} ({where})")


class Conformance:
    """Base of a pytest class with a test for each check: subclass it as ``TestSomething`` and set `generator`.

    `inputs`, `device` and `dtype` are as for `check`. A skipped check counts as passed.
    """

    generator: ClassVar[Generator]
    inputs: ClassVar[Mapping[str, Any]] = {}
    device: ClassVar[str] = "cpu"
    dtype: ClassVar[str] = "float32"
    _subject: ClassVar[Subject | None] = None

    @classmethod
    def teardown_class(cls) -> None:
        """Release the model."""
        cls._subject = None

    def _holds(self, name: str) -> None:
        cls = type(self)
        if cls._subject is None:
            cls._subject = Subject(cls.generator, cls.inputs, devices.choose(cls.device), cls.dtype)
        finding = _find(name, cls._subject)
        assert finding.status != "failed", finding.detail

    def test_inputs_are_declared_and_documented(self) -> None:
        """Every input has help, every number limits."""
        self._holds("inputs declared")

    def test_bad_inputs_are_refused(self) -> None:
        """By the limits that the JSON Schema declares."""
        self._holds("bad inputs refused")

    def test_importing_loads_no_torch(self) -> None:
        """So that listing plugins stays fast."""
        self._holds("imports no torch")

    def test_equal_seeds_give_equal_bytes(self) -> None:
        """Two runs with one seed."""
        self._holds("seed decides")

    def test_batched_equals_alone(self) -> None:
        """Requests that share steps."""
        self._holds("batched as alone")

    def test_a_step_leaves_its_states_valid(self) -> None:
        """Going on twice from one state."""
        self._holds("states stay valid")

    def test_a_saved_state_goes_on_to_the_same_bytes(self) -> None:
        """Saved in the middle and read again."""
        self._holds("saved and resumed")

    def test_cancelling_takes_one_step_and_gives_memory_back(self) -> None:
        """Through the engine."""
        self._holds("cancels")

    def test_memory_is_as_claimed(self) -> None:
        """The model against its weight files."""
        self._holds("memory")

    def test_it_runs_on_a_gpu(self) -> None:
        """On the fake GPU, as on the CPU."""
        self._holds(gpu.CHECK)
