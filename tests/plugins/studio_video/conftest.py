"""A tiny net with random weights, in the folder that `studio train video` writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from studio.devices import torch_setup

torch_setup.prepare()


@pytest.fixture(scope="session")
def tiny_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two blocks of 32; it goes with the image starter's VAE and text tower."""
    import torch

    from studio_video import files
    from studio_video.model import VideoConfig, VideoTransformer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net = VideoTransformer(VideoConfig(width=32, depth=2, head_dim=16, mlp=32))
        for weight in net.parameters():
            torch.nn.init.normal_(weight, std=0.08)
    folder = tmp_path_factory.mktemp("video") / "model"
    files.save(folder, net)
    return folder
