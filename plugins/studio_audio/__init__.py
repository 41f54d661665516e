"""Studio's audio plugin: `audio`, sounds and music by diffusers' audio pipelines.

Importing it imports none of its modules, so that its commands are listed at once.
"""

from __future__ import annotations

import studio


@studio.hookimpl
def studio_generators() -> list[studio.Generator]:
    """The generators of this plugin."""
    from studio_audio.audio import AudioGenerator

    return [AudioGenerator()]


@studio.hookimpl
def studio_commands() -> list[studio.Command]:
    """The commands of this plugin."""
    return [studio.Command("audio", "Generate sound from a prompt.", ".commands:command")]
