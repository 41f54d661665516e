"""What diffusers pipelines return, as media of Studio.

Try it: ``pytest tests/studio/diffusion/test_conformance.py``
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import studio
from studio.errors import ModelError
from studio.finite import Reading
from studio.media import Media


def as_media(kind: type[Media], pipe: Any, result: Any, fps: float = 8.0) -> Media:
    """The first picture, clip or sound of a pipeline's output, of class `kind`.

    Pictures are (N, H, W, 3) and clips (N, T, H, W, 3) arrays in [0, 1], sounds (N, channels, samples) or (N, samples).
    Raises NotFinite, ModelError for an output without such an array, and TypeError for another class.
    """
    if issubclass(kind, studio.Video):
        frames = _first(result, "frames", "videos")
        return studio.Video(studio.pixels(torch.from_numpy(np.ascontiguousarray(frames))).numpy(), fps)
    if issubclass(kind, studio.Image):
        return studio.Image.from_array(studio.pixels(torch.from_numpy(_first(result, "images", "image"))).numpy())
    if issubclass(kind, studio.Audio):
        samples = np.atleast_2d(_first(result, "audios"))
        Reading(samples, "the decoded samples")
        return studio.Audio(samples, sample_rate(pipe))
    raise TypeError(f"a {kind.__name__} cannot be made from the output of a `{type(pipe).__name__}`")


def sample_rate(pipe: Any) -> int:
    """Samples per second of an audio pipeline's output. Raises TypeError if it has none."""
    found = [getattr(pipe, "sample_rate", None)]
    for name in ("vocoder", "vae"):
        config = getattr(getattr(pipe, name, None), "config", None)
        found += [getattr(config, each, None) for each in ("sampling_rate", "sample_rate")]
    for rate in found:
        if isinstance(rate, int | float) and rate > 0:
            return int(rate)
    raise TypeError(f"a `{type(pipe).__name__}` does not say its sample rate")


def _first(result: Any, *names: str) -> Any:
    for name in names:
        found = getattr(result, name, None)
        if found is not None and len(found):
            return np.asarray(found[0])
    message = f"the pipeline returned a `{type(result).__name__}`, which has no `{names[0]}`"
    raise ModelError(message, hint="use the model with another of `studio image`, `video` and `audio`")
