"""Studio's text plugin: the generator `text`, on a decoder for GPT-2 and the Llama family."""

from __future__ import annotations

import studio
from studio_gpt.text import TextGenerator


@studio.hookimpl
def studio_generators() -> list[studio.Generator]:
    """The generators of this plugin."""
    return [TextGenerator()]
