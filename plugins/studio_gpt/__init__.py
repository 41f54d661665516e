"""Studio's text plugin: `text` and two that look into it, on a decoder for GPT-2 and the Llama family."""

from __future__ import annotations

import studio
from studio_gpt.explain import AttentionGenerator, ExplainGenerator
from studio_gpt.text import TextGenerator


@studio.hookimpl
def studio_generators() -> list[studio.Generator]:
    """The generators of this plugin."""
    return [TextGenerator(), ExplainGenerator(), AttentionGenerator()]
