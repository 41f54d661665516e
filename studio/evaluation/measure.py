"""All metrics of a set of generated pictures against a reference set, from their vectors.

Try it: ``pytest tests/studio/evaluation/test_eval.py``
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from studio.evaluation import bootstrap, cmmd, copying, diversity, frechet, labels, manifold

Vectors = NDArray[np.floating]

BLIND = ("CLIP score", "pairwise distance", "Vendi score", "nearest training picture", "suspiciously near")
"""What takes black frames or noise for as good as pictures, and so decides nothing by itself: a bare label such as
`red` may lie nearer to a black frame than to its disc (tests/studio/evaluation/test_eval.py)."""

FigureGroup = Literal["quality", "diversity", "copying", "speed"]


@dataclass(frozen=True)
class Figure:
    """The value of a metric, with its 95% interval (None for a single measurement).

    Attributes:
        group: the property that it measures.
        better: `less`, `more`, or empty if neither is better.
        unit: its unit, or empty.
    """

    name: str
    group: FigureGroup
    value: float
    interval: tuple[float, float] | None = None
    better: Literal["less", "more", ""] = ""
    unit: str = ""

    @property
    def gates(self) -> bool:
        """Whether this metric alone may decide between pass and fail."""
        return self.group != "speed" and self.name not in BLIND


def measure(
    generated: Vectors, reference: Vectors, wanted: Sequence[str] = (), known: Sequence[str] = (),
    texts: Vectors | None = None,
) -> list[Figure]:  # fmt: skip
    """Measure generated (N, D) against reference (M, D) unit vectors.

    Args:
        wanted, known: the label of each generated and of each reference picture; empty without labels.
        texts: the unit vector of each generated picture's label (N, D).

    Raises UsageError for fewer pictures than a Fréchet distance needs.
    """
    found = [
        _statistic("Fréchet distance", "quality", lambda x: frechet.distance(x, reference), generated, "less"),
        _statistic("CMMD", "quality", lambda x: cmmd.distance(x, reference), generated, "less"),
    ]
    if texts is not None:
        found.append(_mean("CLIP score", "quality", labels.clip_score(generated, texts), "more"))
    if wanted:
        rank = labels.ranks(generated, wanted, reference, known)
        ks = [k for k in (1, 5) if k < len(set(known))]  # among five labels each is in the first five
        found += [_mean(f"label top-{k}", "quality", (rank <= k).astype(float), "more", "%") for k in ks]
    balls = manifold.compare(generated, reference)
    found += [
        _mean("precision", "quality", balls.precision, "more", "%"),
        _mean("density", "quality", balls.density, "more"),
        _mean("recall", "diversity", balls.recall, "more", "%"),
        _mean("coverage", "diversity", balls.coverage, "more", "%"),
        _statistic("pairwise distance", "diversity", diversity.pairwise, generated, "more"),
        _statistic("Vendi score", "diversity", diversity.vendi, generated, "more"),
    ]
    near = copying.nearest(generated, reference)
    found += [
        _mean("nearest training picture", "copying", near.cosine, "", "cosine"),
        _mean("suspiciously near", "copying", near.suspicious, "less", "%"),
    ]
    return found


def _mean(
    name: str, group: FigureGroup, values: NDArray[np.floating], better: Literal["less", "more", ""], unit: str = ""
) -> Figure:
    scale = 100.0 if unit == "%" else 1.0
    return Figure(name, group, scale * float(values.mean()), bootstrap.of_mean(scale * values), better, unit)


def _statistic(
    name: str, group: FigureGroup, of: Callable[[Vectors], float], vectors: Vectors, better: Literal["less", "more", ""]
) -> Figure:
    value = of(vectors)
    interval = bootstrap.of_statistic(lambda drawn: of(vectors[drawn]), len(vectors), value)
    return Figure(name, group, value, (max(interval[0], 0.0), interval[1]), better)
