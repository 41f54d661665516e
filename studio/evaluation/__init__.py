"""How good a generator's pictures are: against pictures of a folder, on an encoder's vectors, with intervals.

One metric a file, each a function of arrays: `frechet`, `cmmd`, `manifold`, `diversity`, `copying`, `labels`. `run`
makes the pictures and measures them, `speed` how long that takes, `report` writes it down.

Try it: ``studio eval dcgan --data pictures``
"""

from studio.evaluation.measure import Figure, measure
from studio.evaluation.run import Evaluation, evaluate

__all__ = ["Evaluation", "Figure", "evaluate", "measure"]
