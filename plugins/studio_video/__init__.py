"""Studio's video plugin: a small diffusion transformer on spacetime patches, trained by the project."""

from __future__ import annotations

import studio
from studio_video.trainers import TrainVideo
from studio_video.video import VideoGenerator


@studio.hookimpl
def studio_generators() -> list[studio.Generator]:
    """The generators of this plugin."""
    return [VideoGenerator()]


@studio.hookimpl
def studio_trainers() -> list[studio.Trainer]:
    """The trainers of this plugin."""
    return [TrainVideo()]
