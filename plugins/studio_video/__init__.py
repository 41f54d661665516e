"""Studio's video plugin: a small diffusion transformer on spacetime patches, trained by the project.

Importing it imports none of its modules, so that its commands are listed at once.
"""

from __future__ import annotations

import studio


@studio.hookimpl
def studio_generators() -> list[studio.Generator]:
    """The generators of this plugin."""
    from studio_video.video import VideoGenerator

    return [VideoGenerator()]


@studio.hookimpl
def studio_trainers() -> list[studio.Trainer]:
    """The trainers of this plugin."""
    from studio_video.trainers import TrainVideo

    return [TrainVideo()]


@studio.hookimpl
def studio_commands() -> list[studio.Command]:
    """The commands of this plugin."""
    return [studio.Command("video", "Generate a short video from a prompt.", ".commands:command")]


@studio.hookimpl
def studio_methods() -> list[studio.Method]:
    """The methods of `Studio` from this plugin."""
    return [studio.Method("video", ".methods:video")]
