"""Studio's CLIP plugin: vectors of texts and pictures, what is told by them, and the training of its CLIP.

Its text tower is the image model's. Importing it imports none of its modules, so that its commands are listed at once.
"""

from __future__ import annotations

import studio


@studio.hookimpl
def studio_generators() -> list[studio.Generator]:
    """The generators of this plugin."""
    from studio_clip.describe import DescribeGenerator
    from studio_clip.embed import EmbedGenerator, EmbedPicturesGenerator
    from studio_clip.label import LabelGenerator
    from studio_clip.rank import RankGenerator

    return [EmbedGenerator(), EmbedPicturesGenerator(), RankGenerator(), LabelGenerator(), DescribeGenerator()]


@studio.hookimpl
def studio_trainers() -> list[studio.Trainer]:
    """The trainers of this plugin."""
    from studio_clip.trainers import TrainClip, TrainText

    return [TrainText(), TrainClip()]


@studio.hookimpl
def studio_commands() -> list[studio.Command]:
    """The commands of this plugin."""
    return [
        studio.Command("embed", "Turn texts and pictures into vectors.", ".commands.embed:command"),
        studio.Command("rank", "Order pictures by how well they go with a text.", ".commands.rank:command"),
        studio.Command("label", "Tell which of some labels fits each picture.", ".commands.label:command"),
        studio.Command("search", "Find pictures by words.", ".commands.search:command"),
    ]


@studio.hookimpl
def studio_methods() -> list[studio.Method]:
    """What this plugin adds to `Studio`."""
    judging = [studio.Method(name, f".methods:{name}") for name in ("embed", "rank", "label")]
    return [*judging, studio.Method("search", ".search:search")]


@studio.hookimpl
def studio_embedders() -> list[studio.Embedder]:
    """CLIP, which sees pictures and reads what is to be in them."""
    return [studio.Embedder("clip", pictures="embed-pictures", texts="embed")]
