"""Studio's text plugin: text generation, chat, interpretability, perplexity, and training of language models.

Importing it imports none of its modules, so that listing its commands is fast.
"""

from __future__ import annotations

import studio


@studio.hookimpl
def studio_generators() -> list[studio.Generator]:
    """The generators of this plugin."""
    from studio_gpt.explain import AttentionGenerator, ExplainGenerator
    from studio_gpt.perplexity import PerplexityGenerator
    from studio_gpt.text import TextGenerator

    return [TextGenerator(), ExplainGenerator(), AttentionGenerator(), PerplexityGenerator()]


@studio.hookimpl
def studio_trainers() -> list[studio.Trainer]:
    """The trainers of this plugin."""
    from studio_gpt.trainers import TrainGPT, TuneGPT

    return [TrainGPT(), TuneGPT()]


@studio.hookimpl
def studio_commands() -> list[studio.Command]:
    """The commands of this plugin."""
    return [
        studio.Command("text", "Generate text from a prompt.", ".commands.text:command"),
        studio.Command("chat", "Chat with a language model.", ".commands.chat:command"),
    ]


@studio.hookimpl
def studio_methods() -> list[studio.Method]:
    """The methods that this plugin adds to `Studio`."""
    return [studio.Method(name, f".methods:{name}") for name in ("text", "chat", "explain")]
