"""`Backend`: an attention kernel with a name and the problems that it refuses. Imports no torch.

Plugins add backends through the hook `studio_attention_backends`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    from studio.attention.problem import Problem

BUILT_IN = (
    "sdpa-flash", "sdpa-efficient", "sdpa-cudnn", "sdpa-math", "chunked", "flex", "varlen", "xformers", "reference",
)  # fmt: skip


class Backend(ABC):
    """One way to compute attention. Thread-safe, and no state between calls may change an output."""

    name: ClassVar[str]

    @abstractmethod
    def refuses(self, problem: Problem) -> list[str]:
        """All reasons why the backend does not support the problem, one line each; empty if it does.

        Called once for all problems of equal `Problem.key`, so the answer must depend on nothing else.
        """

    @abstractmethod
    def attend(self, q: Tensor, k: Tensor, v: Tensor, problem: Problem, scale: float) -> Tensor:
        """Compute a problem that is not refused and not empty.

        `q` is (B, Q, H, D), `k` (B, K, G, D), `v` (B, K, G, E); returns (B, Q, H, E). Queries whose keys are
        all masked get zeros. Results for rows with non-finite inputs are unspecified: such calls are recomputed (see
        `exact`).
        """


def check(offered: object) -> list[str]:
    """Why something is not a usable attention backend; empty if it is one."""
    if isinstance(offered, type):
        return [f"is a class; register an instance: `{offered.__name__}()`"]
    if not isinstance(offered, Backend):
        return [f"is {type(offered).__name__}; it must be a `studio.attention.Backend`"]
    name = getattr(offered, "name", None)
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9-]{0,39}", name) or name == "auto":
        rule = "it must be lowercase letters, digits and dashes, start with a letter, and not be `auto`"
        return [f"its name is {name!r}; {rule}"]
    return []
