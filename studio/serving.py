"""Which generator serves a request: the one with the weights that its inputs name, found in the host's data folder.

This module knows nothing of engines or of what the inputs mean.

Try it: ``serve(studio.Studio().generator("text"), inputs, home=Path("data"))``
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from studio import models
from studio.generator import Generator

MOST_KEPT = 32
Made = TypeVar("Made", bound=Generator)


def serve(generator: Generator, inputs: Any, *, home: Path, invariant: bool = False) -> Generator:
    """The generator that is to make these inputs; where the request is `invariant`, one that shares nothing.

    Models are found by name in the data folder `home`. Raises what the generator's `serving` raises, such as ModelError
    for a model that was not pulled.
    """
    with models.home(home):
        serving = generator.serving(inputs)
    return serving.alone() if invariant else serving


def others(kind: type[Made]) -> Callable[..., Made]:
    """What a generator keeps of others of its class, for `Generator.serving`: called with the arguments of `kind`, it
    gives one made with these, and the same one each time, so that its model is kept.

    The 32 used last are kept. One that comes back after that is made anew, and finds its loaded model by its files.
    """
    return lru_cache(maxsize=MOST_KEPT)(kind)
