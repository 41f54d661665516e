"""Whether pictures match their prompts: CLIP score, and the rank of the right label.

Labels are ranked by their nearest reference picture, which compares pictures with pictures; the CLIP score compares a
picture with the label's text. Both need labels.

Try it: ``pytest tests/studio/evaluation/test_metrics.py -k labels``
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def clip_score(pictures: NDArray[np.floating], texts: NDArray[np.floating]) -> NDArray[np.float64]:
    """100 times the cosine of each picture with its text, at least 0 (Hessel et al. 2021), (N,)."""
    return np.asarray(np.maximum(100 * (np.asarray(pictures, np.float64) * texts).sum(1), 0), np.float64)


def ranks(
    pictures: NDArray[np.floating], wanted: Sequence[str], reference: NDArray[np.floating], labels: Sequence[str]
) -> NDArray[np.int64]:
    """The rank (from 1) of each picture's label, when labels are ordered by their nearest reference picture.

    Args:
        pictures: unit vectors (N, D); `wanted` has the label of each, which must be among `labels`.
        reference: unit vectors (M, D); `labels` has the label of each.

    Labels that are as near as the right one are ranked before it.
    """
    names = sorted(set(labels))
    column = {name: place for place, name in enumerate(names)}
    cosines = np.asarray(pictures, np.float64) @ np.asarray(reference, np.float64).T  # (N, M)
    near = np.full((len(names), len(cosines)), -np.inf)
    np.maximum.at(near, [column[label] for label in labels], cosines.T)
    own = near[[column[label] for label in wanted], np.arange(len(cosines))]
    return np.asarray((near >= own).sum(0), np.int64)
