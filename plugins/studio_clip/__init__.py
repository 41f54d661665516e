"""Studio's CLIP plugin: embeddings of texts and pictures, ranking, zero-shot labels, search, and training of CLIP.

Its text tower is the image model's. Importing it imports none of its modules, so that listing its commands is fast.
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
        studio.Command("embed", "Embed texts and pictures as vectors.", ".commands.embed:command"),
        studio.Command("rank", "Rank pictures by how well they match a text.", ".commands.rank:command"),
        studio.Command("label", "Classify pictures among given labels.", ".commands.label:command"),
        studio.Command("search", "Search pictures by text.", ".commands.search:command"),
    ]


@studio.hookimpl
def studio_methods() -> list[studio.Method]:
    """The methods that this plugin adds to `Studio`."""
    judging = [studio.Method(name, f".methods:{name}") for name in ("embed", "rank", "label")]
    return [*judging, studio.Method("search", ".search:search")]


@studio.hookimpl
def studio_embedders() -> list[studio.Embedder]:
    """CLIP, which embeds pictures and texts."""
    return [studio.Embedder("clip", pictures="embed-pictures", texts="embed")]
