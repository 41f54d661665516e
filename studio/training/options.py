"""What every training recipe asks for, declared once. Loads no torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from studio.inputs import Inputs, field

if TYPE_CHECKING:
    import torch


class TrainingOptions(Inputs):
    """Where a run keeps its files, how long it goes and on what."""

    work: str = field("training", help="folder of data sets, runs and results; the same folder goes on where it was")
    steps: int = field(1_000_000, ge=1, help="stop after this many steps")
    minutes: float = field(60.0, gt=0, help="stop after this much training time, earlier sittings counted in")
    device: str = field("", help="cpu, cuda or cuda:N; by default CUDA where there is one")  # `studio --device`

    @property
    def folder(self) -> Path:
        """`work` as a path."""
        return Path(self.work)

    def torch_device(self) -> torch.device:
        """Set torch up, and enter the device to train on: of several processes on one machine, each takes the card of
        its `LOCAL_RANK`, before anything is put there. Raises UsageError for a device that is not there.
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
