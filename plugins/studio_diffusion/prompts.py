"""Weights of words in a prompt: ``a (red:1.4) apple`` turns `red` up, ``(white background:0.5)`` turns that down.

Other parentheses are text. Knows nothing of tokens; latent.py weighs their states.

Try it: ``pieces("a (red:1.4) apple")`` is ``[("a ", 1.0), ("red", 1.4), (" apple", 1.0)]``
"""

from __future__ import annotations

import re

LARGEST = 3.0
_WEIGHED = re.compile(r"\(([^():]+):(\d{1,6}(?:\.\d{1,6})?)\)")


def pieces(prompt: str) -> list[tuple[str, float]]:
    """The prompt in pieces, each with its weight; without weights it is one piece. Raises ValueError above LARGEST."""
    made, at = [], 0
    for found in _WEIGHED.finditer(prompt):
        weight = float(found[2])
        if weight > LARGEST:
            raise ValueError(f"gives `{found[1]}` the weight {found[2]}, but weights are from 0 to {LARGEST:g}")
        made += [(prompt[at : found.start()], 1.0), (found[1], weight)]
        at = found.end()
    made.append((prompt[at:], 1.0))
    return [piece for piece in made if piece[0]]
