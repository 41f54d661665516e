"""Studio's diffusion plugin: `image`, a small Stable Diffusion, and `ddpm`, in pixels; both trained by the project."""

from __future__ import annotations

import studio
from studio_diffusion.ddpm import DdpmGenerator
from studio_diffusion.image import ImageGenerator
from studio_diffusion.trainers import TrainDdpm, TrainImage, TrainVae


@studio.hookimpl
def studio_generators() -> list[studio.Generator]:
    """The generators of this plugin."""
    return [ImageGenerator(), DdpmGenerator()]


@studio.hookimpl
def studio_trainers() -> list[studio.Trainer]:
    """The trainers of this plugin."""
    return [TrainVae(), TrainImage(), TrainDdpm()]
