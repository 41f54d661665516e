"""The bank: every picture in every pose that a motion takes, as latents, made once and kept in one file.

Clips are put together from it while training: encoding frames anew for each clip would take longer than learning from
them. Knows nothing of captions or of the net.

Try it: `make(vae, pictures, [record["id"] for record in records], Path("bank.safetensors"))`
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import safetensors
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor

from studio_diffusion import export
from studio_video.motions import POSES, draw


def make(vae: AutoencoderKL, pictures: np.ndarray, names: Sequence[str], path: Path) -> Tensor:
    """The latents of `POSES` of all pictures: float16 (N, poses, C, h, w), mapped from `path`, made if it has others.

    Args:
        pictures: uint8 (N, S, S, 3), on white.
        names: of the pictures; with the poses they say whether what lies at `path` is still right.
    """
    meant = hashlib.sha256(json.dumps([list(names), [repr(pose) for pose in POSES], pictures.shape]).encode())
    if path.exists():
        with safetensors.safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("of") == meant.hexdigest():
                return file.get_tensor("latents")
    made = []
    for pixels in pictures:
        picture = PIL.Image.fromarray(pixels)
        frames = np.stack([draw(picture, pose) for pose in POSES])
        made.append(export.encode(vae, frames).half().contiguous())
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    save_file({"latents": torch.stack(made)}, part, {"of": meant.hexdigest()})
    os.replace(part, path)
    return make(vae, pictures, names, path)
