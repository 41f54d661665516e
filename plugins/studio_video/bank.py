"""The bank: every picture in every pose that a motion takes, as latents, made once and kept in one file.

Clips are put together from it while training: encoding frames anew for each clip would take longer than learning from
them. What animated emoji do is kept in the same way, in a file of its own. Knows nothing of captions or of the net.

Try it: `make(vae, pictures, [record["id"] for record in records], Path("bank.safetensors"))`
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import safetensors
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from studio.files import make_folder, scratch_folder
from studio_datasets import animated
from studio_diffusion import export
from studio_video.motions import PHASES, POSES, Pose, draw

FPS = 12.0
"""Frames a second of the animations; what `studio video` makes unless told otherwise."""


def make(vae: AutoencoderKL, pictures: np.ndarray, names: Sequence[str], path: Path) -> Tensor:
    """The latents of `POSES` of all pictures: float16 (N, poses, C, h, w), mapped from `path`, made if it has others.

    Args:
        pictures: uint8 (N, S, S, 3), on white.
        names: of the pictures; with the poses they say whether what lies at `path` is still right.
    """

    def made() -> dict[str, Tensor]:
        return {"latents": torch.stack([_encoded(vae, pixels, POSES) for pixels in pictures])}

    return _kept(path, [list(names), [repr(pose) for pose in POSES], pictures.shape], made)["latents"]


def films(vae: AutoencoderKL, animations: Mapping[str, Path], size: int, path: Path) -> dict[str, Tensor]:
    """The latents of animated emoji by name, at rest: float16 (T, C, h, w), `FPS` frames a second, kept as `make` does.

    Args:
        animations: the file of each name; stills, and what is shorter than a movement, are left out.
        size: the side of the frames in pixels.

    Raises MediaError for a damaged file.
    """

    def made() -> dict[str, Tensor]:
        read = ((name, animated.read(file, FPS, size)) for name, file in animations.items())
        rest = (Pose(),)
        return {
            name: torch.cat([_encoded(vae, frame, rest) for frame in frames])
            for name, frames in read
            if len(frames) >= PHASES
        }

    return _kept(path, [size, FPS, [(name, file.stat().st_size) for name, file in animations.items()]], made)


def _encoded(vae: AutoencoderKL, pixels: np.ndarray, poses: Sequence[Pose]) -> Tensor:
    """A picture, uint8 (S, S, 3), in these poses: float16 (poses, C, h, w)."""
    picture = PIL.Image.fromarray(pixels)
    return export.encode(vae, np.stack([draw(picture, pose) for pose in poses])).half().contiguous()


def _kept(path: Path, of: list[object], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors at `path`, mapped; made and written first unless they are there and `of` the same."""
    meant = hashlib.sha256(json.dumps(of).encode()).hexdigest()
    if path.exists():
        with safetensors.safe_open(path, framework="pt") as file:
            right = (file.metadata() or {}).get("of") == meant
        if right:
            return load_file(path)
    make_folder(path.parent)
    with scratch_folder(path.parent) as scratch:
        save_file(make(), scratch / path.name, {"of": meant})  # not by way of bytes: it may be gigabytes
        os.replace(scratch / path.name, path)
    return _kept(path, of, make)
