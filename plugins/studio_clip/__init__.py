"""Studio's CLIP plugin: the generator `embed`, and the training of its CLIP, which has the image model's text tower."""

from __future__ import annotations

import studio
from studio_clip.embed import EmbedGenerator
from studio_clip.trainers import TrainClip, TrainText


@studio.hookimpl
def studio_generators() -> list[studio.Generator]:
    """The generators of this plugin."""
    return [EmbedGenerator()]


@studio.hookimpl
def studio_trainers() -> list[studio.Trainer]:
    """The trainers of this plugin."""
    return [TrainText(), TrainClip()]
