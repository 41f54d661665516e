"""A step cache: late steps that do not ask the net, but go on in the direction that its last two answers show.

The clean latents that the net sees change much while shapes come about, and little and steadily afterwards. So the
first of the steps all ask, and of the rest every second; in between x_0 is drawn out linearly over the noise level from
the two answers before. Knows nothing of nets; the answers are kept in the state.

Try it: ``sum(asks(i, 20) for i in range(20))`` is 12
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

WHOLE = 0.3
"""The first part of the steps, in which none is left out."""


def asks(position: int, steps: int) -> bool:
    """Whether the step at this position, of so many in all, asks the net."""
    first = max(2, round(WHOLE * steps))
    return position < first or ((position - first) % 2 == 1 and position < steps - 1)


def drawn_out(answers: tuple[tuple[float, Tensor], ...], s: float) -> Tensor:
    """Clean latents at noise level `s` from the last two answers, (level, x_0 (C, H, W)) each, the earlier first."""
    (s_1, first), (s_2, second) = answers
    return second + (second - first) * ((s - s_2) / (s_2 - s_1))
