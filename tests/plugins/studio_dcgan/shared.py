"""Three steps of a thin DCGAN by the recipe itself: `shared.py WORK PHOTOS`, alone or under torchrun."""

from __future__ import annotations

import sys

from rich.console import Console

from studio_dcgan.trainer import TrainDcgan

if __name__ == "__main__":
    given = {"work": sys.argv[1], "data": sys.argv[2], "device": "cpu", "steps": 3, "batch": 4, "width": 8}
    TrainDcgan().run(TrainDcgan.Options.parse({**given, "grid_every": 2}), Console(stderr=True))
