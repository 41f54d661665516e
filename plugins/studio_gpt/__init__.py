"""Studio's text plugin: `text` and three that look into it, on one decoder, and what trains a decoder."""

from __future__ import annotations

import studio
from studio_gpt.explain import AttentionGenerator, ExplainGenerator
from studio_gpt.perplexity import PerplexityGenerator
from studio_gpt.text import TextGenerator
from studio_gpt.trainers import TrainGPT, TuneGPT


@studio.hookimpl
def studio_generators() -> list[studio.Generator]:
    """The generators of this plugin."""
    return [TextGenerator(), ExplainGenerator(), AttentionGenerator(), PerplexityGenerator()]


@studio.hookimpl
def studio_trainers() -> list[studio.Trainer]:
    """The trainers of this plugin."""
    return [TrainGPT(), TuneGPT()]
