"""What every training recipe asks for, declared once. Loads no torch."""

from __future__ import annotations

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
        """Set torch up and name the device to train on."""
        import torch

        from studio import devices, torch_setup

        torch_setup.prepare()
        return torch.device(devices.choose(self.device or None))
