"""Studio's CLIP plugin: trains a small CLIP whose text tower also tells the image model what to draw."""

from __future__ import annotations

import studio
from studio_clip.trainers import TrainClip, TrainText


@studio.hookimpl
def studio_trainers() -> list[studio.Trainer]:
    """The trainers of this plugin."""
    return [TrainText(), TrainClip()]
