"""A step cache: late steps that do not ask the net, but take what it last said.

The clean latents that the net sees change much while shapes come about, and little afterwards. So the first of the
steps all ask, and of the rest every second, the last among them; a step between goes on towards the x_0 of the one
before. Knows nothing of nets; that x_0 is in the state in any case.

Try it: ``sum(asks(i, 20) for i in range(20))`` is 12
"""

from __future__ import annotations

WHOLE = 0.2
"""The first part of the steps, in which none is left out."""


def asks(position: int, steps: int) -> bool:
    """Whether the step at this position, of so many in all, asks the net."""
    return position < max(2, round(WHOLE * steps)) or (steps - 1 - position) % 2 == 0
