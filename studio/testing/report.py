"""What the conformance suite found: one Finding a check, with its numbers, and a Report of all. Plain data.

Try it: ``studio plugins check image --json``
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Number = int | float | str | bool


@dataclass(frozen=True)
class Finding:
    """One check: `detail` says in a sentence what was found, `numbers` holds it for programs.

    A check is ``skipped`` where there is nothing to look at, and `detail` says why.
    """

    check: str
    status: Literal["passed", "failed", "skipped"]
    detail: str
    numbers: Mapping[str, Number] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """All that was found of one generator on one device."""

    generator: str
    device: str
    dtype: str
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failures

    @property
    def failures(self) -> tuple[Finding, ...]:
        """Those that failed."""
        return tuple(each for each in self.findings if each.status == "failed")

    def raise_if_failed(self) -> None:
        """Raise AssertionError, which names every check that failed with its reason."""
        if self.failures:
            lines = [f"  {each.check}: {each.detail}" for each in self.failures]
            raise AssertionError("\n".join([f"`{self.generator}` does not conform:", *lines]))

    def as_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {"passed": self.passed, **asdict(self)}
