"""The options of all trainers. Loads no torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from studio.errors import InputError
from studio.inputs import Inputs, field

if TYPE_CHECKING:
    import torch

    from studio.generator import Trainer


class TrainingOptions(Inputs):
    """The folder, the length and the device of a run."""

    work: str = field("training", help="folder for data sets, runs and results; the same folder resumes")
    steps: int = field(1_000_000, ge=1, help="stop after this many steps")
    minutes: float = field(60.0, gt=0, help="stop after this much training time, including earlier sessions")
    device: str = field("", help="cpu, cuda or cuda:N; default: CUDA if available")  # `studio --device`

    @property
    def folder(self) -> Path:
        """`work` as a path."""
        return Path(self.work)

    def torch_device(self) -> torch.device:
        """Set up torch and select the training device; with several processes per machine, the GPU of `LOCAL_RANK`.

        Raises UsageError for a missing device.
        """
        import torch

        from studio import devices
        from studio.devices import torch_setup

        torch_setup.prepare()
        name = devices.choose(self.device or None)
        if (rank := os.environ.get("LOCAL_RANK")) is not None and self.device in ("", name.partition(":")[0]):
            name = name if name == "cpu" else devices.choose(f"{name.partition(':')[0]}:{rank}")
        devices.device(name).enter()
        return torch.device(name)


def training_data(trainer: Trainer, option: str, given: str, what: str) -> Path:
    """The path in a trainer's option for its data. Raises InputError if it is empty; the hint has the starter's
    command too.
    """
    if given:
        return Path(given)
    hint = f"give `--{option} PATH`"
    if trainer.starter:
        hint += f"; for the starter's data, see `{trainer.starter}` (docs/training.md)"
    raise InputError(option, f"`{option}` is missing: {what}", hint=hint)
