"""A DCGAN with random weights, thin and of three classes, in a file as the project saves it."""

from __future__ import annotations

from pathlib import Path

import pytest

from studio.devices import torch_setup

torch_setup.prepare()

CLASSES = ("banana", "red apple", "Kiwi")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven latents, a width of eight, three classes, and batch norms that have seen pictures."""
    import torch

    from studio_dcgan import checkpoint, train
    from studio_dcgan.model import GeneratorNet

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("tiny") / "model.safetensors"
    checkpoint.save(train.calibrated(GeneratorNet(7, 8, len(CLASSES), 5), batches=2, batch=8), path, CLASSES)
    return path
