"""The results of the conformance suite: one Finding per check, with its numbers, and a Report of all.

Try it: ``studio plugins check image --json``
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Number = int | float | str | bool


@dataclass(frozen=True)
class Finding:
    """The result of one check: `detail` is a sentence, `numbers` are for programs.

    A check that does not apply is ``skipped``, and `detail` says why.
    """

    check: str
    status: Literal["passed", "failed", "skipped"]
    detail: str
    numbers: Mapping[str, Number] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """All findings for one generator on one device."""

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
        """Raise AssertionError that lists every failed check with its reason."""
        if self.failures:
            lines = [f"  {each.check}: {each.detail}" for each in self.failures]
            raise AssertionError("\n".join([f"`{self.generator}` does not conform:", *lines]))

    def as_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {"passed": self.passed, **asdict(self)}
