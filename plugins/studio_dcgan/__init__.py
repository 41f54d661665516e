"""Studio's DCGAN plugin: pictures in one step, and walks among them (Radford, Metz and Chintala 2015)."""

from __future__ import annotations

import studio
from studio_dcgan.dcgan import DcganGenerator, DcganWalk
from studio_dcgan.trainer import TrainDcgan


@studio.hookimpl
def studio_generators() -> list[studio.Generator]:
    """The generators of this plugin."""
    return [DcganGenerator(), DcganWalk()]


@studio.hookimpl
def studio_trainers() -> list[studio.Trainer]:
    """The trainers of this plugin."""
    return [TrainDcgan()]
