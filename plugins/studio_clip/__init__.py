"""Studio's CLIP plugin: vectors of texts and pictures, what is told by them, and the training of its CLIP.

Its text tower is the image model's.
"""

from __future__ import annotations

import studio
from studio_clip.describe import DescribeGenerator
from studio_clip.embed import EmbedGenerator, EmbedPicturesGenerator
from studio_clip.label import LabelGenerator
from studio_clip.rank import RankGenerator
from studio_clip.trainers import TrainClip, TrainText


@studio.hookimpl
def studio_generators() -> list[studio.Generator]:
    """The generators of this plugin."""
    return [EmbedGenerator(), EmbedPicturesGenerator(), RankGenerator(), LabelGenerator(), DescribeGenerator()]


@studio.hookimpl
def studio_trainers() -> list[studio.Trainer]:
    """The trainers of this plugin."""
    return [TrainText(), TrainClip()]
