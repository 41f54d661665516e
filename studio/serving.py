"""Which generator serves a request: the one with the weights that its inputs name, found in the host's data folder.

This module knows nothing of engines or of what the inputs mean.

Try it: ``serve(studio.Studio().generator("text"), inputs, home=Path("data"))``
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from studio import models
from studio.generator import Generator


def serve(generator: Generator, inputs: Any, *, home: Path, invariant: bool = False) -> Generator:
    """The generator that is to make these inputs; where the request is `invariant`, one that shares nothing.

    Models are found by name in the data folder `home`. Raises what the generator's `serving` raises, such as ModelError
    for a model that was not pulled.
    """
    with models.home(home):
        serving = generator.serving(inputs)
    return serving.alone() if invariant else serving
