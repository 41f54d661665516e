"""Sizes as people write them: ``128x96``, for generators whose nets take multiples of some number of pixels.

Try it: ``parse(" 128 × 96 ", 32, 64, 512)`` is ``"128x96"``
"""

from __future__ import annotations

import re

_SIZE = re.compile(r"(\d{1,5})\s*[x×*]\s*(\d{1,5})")


def parse(text: str, multiple: int, smallest: int, largest: int) -> str:
    """The size as ``WIDTHxHEIGHT``. Raises ValueError, with the rule."""
    match = _SIZE.fullmatch(text.strip())
    sides = [int(side) for side in match.groups()] if match else []
    if not sides or any(side % multiple or not smallest <= side <= largest for side in sides):
        of = f"a multiple of {multiple} " if multiple > 1 else ""
        raise ValueError(f"must be WIDTHxHEIGHT, each {of}from {smallest} to {largest}")
    return f"{sides[0]}x{sides[1]}"
