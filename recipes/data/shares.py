"""How often the starters draw each picture of the data set in training."""

from __future__ import annotations

import math
from typing import Any

NOUNS = ("animals", "food", "travel", "activities", "objects")
SHARES = {"smileys": 0.3, "people": 0.06, "component": 0.06, "symbols": 0.06, "flags": 0.03}
"""Sampling weights of groups, relative to 1 for a thing that WordNet defines and its texts never name."""


def share(record: dict[str, Any]) -> float:
    """The sampling weight of a picture: for a thing by the frequency of its name in English, for others by `SHARES`.

    Users ask for cats and houses. The set has many flags and family portraits, which users rarely ask for.
    """
    if record["source"] == "clipart":
        return 0.04
    if record["group"] in NOUNS:
        return 1 + math.log2(1 + record["count"]) if record["gloss"] else 0.4
    return SHARES[record["group"]]
