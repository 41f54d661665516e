"""Evaluation of image generators: metrics of an encoder's embeddings against reference images, with intervals.

One metric per file, each a function of arrays: `frechet`, `cmmd`, `manifold`, `diversity`, `copying`, `labels`. `run`
generates the images and measures them, `speed` measures speed and memory, `report` writes the report.

Try it: ``studio eval dcgan --data pictures``
"""

from studio.evaluation.measure import Figure, measure
from studio.evaluation.run import Evaluation, evaluate

__all__ = ["Evaluation", "Figure", "evaluate", "measure"]
