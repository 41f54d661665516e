"""Studio's diffusion plugin: `image`, a small Stable Diffusion, and `ddpm`, in pixels; both trained by this project.

Importing it imports none of its modules, so that its commands are listed at once.
"""

from __future__ import annotations

import studio


@studio.hookimpl
def studio_generators() -> list[studio.Generator]:
    """The generators of this plugin."""
    from studio_diffusion.ddpm import DdpmGenerator
    from studio_diffusion.image import ImageGenerator

    return [ImageGenerator(), DdpmGenerator()]


@studio.hookimpl
def studio_trainers() -> list[studio.Trainer]:
    """The trainers of this plugin."""
    from studio_diffusion.trainers import BuildData, TrainDdpm, TrainImage, TrainVae

    return [BuildData(), TrainVae(), TrainImage(), TrainDdpm()]


@studio.hookimpl
def studio_commands() -> list[studio.Command]:
    """The commands of this plugin."""
    return [studio.Command("image", "Generate a picture from a prompt.", ".commands:command")]


@studio.hookimpl
def studio_methods() -> list[studio.Method]:
    """The methods of `Studio` from this plugin."""
    return [studio.Method("image", ".methods:image"), studio.Method("images", ".methods:images")]
