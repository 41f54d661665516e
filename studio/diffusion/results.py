"""What diffusers pipelines return, as media of Studio.

Try it: ``pytest tests/studio/diffusion/test_generator.py``
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import studio
from studio.media import Media


def as_media(kind: type[Media], pipe: Any, result: Any, fps: float = 8.0) -> Media:
    """The first picture, clip or sound of a pipeline's output, of class `kind`.

    Pictures are (N, H, W, 3) and clips (N, T, H, W, 3) arrays in [0, 1]. Raises NotFinite, and TypeError for an output
    without such an array.
    """
    if issubclass(kind, studio.Video):
        frames = _first(result, "frames", "videos")
        return studio.Video(studio.pixels(torch.from_numpy(np.ascontiguousarray(frames))).numpy(), fps)
    if issubclass(kind, studio.Image):
        return studio.Image.from_array(studio.pixels(torch.from_numpy(_first(result, "images", "image"))).numpy())
    raise TypeError(f"a {kind.__name__} cannot be made from the output of a `{type(pipe).__name__}`")


def _first(result: Any, *names: str) -> Any:
    for name in names:
        found = getattr(result, name, None)
        if found is not None and len(found):
            return np.asarray(found[0])
    raise TypeError(f"the pipeline returned a {type(result).__name__} without `{names[0]}`")
