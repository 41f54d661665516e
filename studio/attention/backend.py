"""What a backend is: a name, what it refuses, and the computation. Imports no torch.

A plugin offers its own through the hook `studio_attention_backends`. This module knows nothing of dispatch.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    from studio.attention.problem import Problem

OWN = (
    "sdpa-flash", "sdpa-efficient", "sdpa-cudnn", "sdpa-math", "chunked", "flex", "varlen", "xformers", "reference",
)  # fmt: skip


class Backend(ABC):
    """One way to compute attention. It keeps nothing between calls that could change an answer, and is thread-safe."""

    name: ClassVar[str]

    @abstractmethod
    def refuses(self, problem: Problem) -> list[str]:
        """Every reason why it cannot serve the problem, one line each; none if it can.

        It is asked once for all problems of equal `Problem.key`, so it must look at nothing else.
        """

    @abstractmethod
    def attend(self, q: Tensor, k: Tensor, v: Tensor, problem: Problem, scale: float) -> Tensor:
        """Compute a problem that it does not refuse and that is not empty.

        `q` is (B, Q, H, D), `k` (B, K, G, D), `v` (B, K, G, E); returns (B, Q, H, E). Queries that see nothing get
        zeros. What a row gets that meets non-finite numbers is of no account: such calls are computed again (see
        `exact`).
        """


def check(offered: object) -> list[str]:
    """Why something is no attention backend that can be used; empty if it is one."""
    if isinstance(offered, type):
        return [f"is a class; register an instance: `{offered.__name__}()`"]
    if not isinstance(offered, Backend):
        return [f"is {type(offered).__name__}; it must be a `studio.attention.Backend`"]
    name = getattr(offered, "name", None)
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9-]{0,39}", name) or name == "auto":
        return [
            f"its name is {name!r}; it must be lower-case letters, digits and dashes, from a letter, and not `auto`"
        ]
    return []
