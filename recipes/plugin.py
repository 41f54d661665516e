"""The recipes as a plugin of Studio: `studio --plugin recipes/plugin.py train NAME`, from the project's folder."""

from __future__ import annotations

import studio
from recipes.clip.trainer import TrainClip
from recipes.data.trainer import BuildData
from recipes.gpt.trainer import TrainGPT
from recipes.image import TrainImage
from recipes.text.trainer import TrainText
from recipes.vae import TrainVae
from recipes.video.trainer import TrainVideo


@studio.hookimpl
def studio_trainers() -> list[studio.Trainer]:
    """The recipes of all starters."""
    return [BuildData(), TrainText(), TrainVae(), TrainImage(), TrainClip(), TrainVideo(), TrainGPT()]
