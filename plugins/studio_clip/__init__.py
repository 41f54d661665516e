"""Studio's CLIP plugin: the generators `embed` and `clip-rank`, and the training of its CLIP.

Its text tower is the image model's.
"""

from __future__ import annotations

import studio
from studio_clip.embed import EmbedGenerator
from studio_clip.rank import RankGenerator
from studio_clip.trainers import TrainClip, TrainText


@studio.hookimpl
def studio_generators() -> list[studio.Generator]:
    """The generators of this plugin."""
    return [EmbedGenerator(), RankGenerator()]


@studio.hookimpl
def studio_trainers() -> list[studio.Trainer]:
    """The trainers of this plugin."""
    return [TrainText(), TrainClip()]
