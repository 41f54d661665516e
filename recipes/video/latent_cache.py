"""The latent cache of video training: every picture in every pose of a motion, encoded once, in one file.

Training assembles clips from it, since encoding the frames of each clip would take longer than training on them. The
frames of animated emoji are cached in a second file.

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

from recipes.data import animated
from recipes.video.motions import PHASES, POSES, Pose, draw
from studio.files import make_folder, scratch_folder
from studio_diffusion import export

FPS = 12.0
"""Frames per second of the animations; also the default of `studio video`."""


def make(vae: AutoencoderKL, pictures: np.ndarray, names: Sequence[str], path: Path) -> Tensor:
    """The latents of all pictures in `POSES`: float16 (N, poses, C, h, w), memory-mapped from `path`, encoded on a
    miss.

    Args:
        pictures: uint8 (N, S, S, 3), on white.
        names: of the pictures; with the poses they are the cache key.
    """

    def made() -> dict[str, Tensor]:
        return {"latents": torch.stack([_encoded(vae, pixels, POSES) for pixels in pictures])}

    return _cached(path, [list(names), [repr(pose) for pose in POSES], pictures.shape], made)["latents"]


def films(vae: AutoencoderKL, animations: Mapping[str, Path], size: int, path: Path) -> dict[str, Tensor]:
    """The latents of animated emoji by name: float16 (T, C, h, w), `FPS` frames per second, cached as by `make`.

    Args:
        animations: the file of each name; those shorter than a motion are skipped.
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

    return _cached(path, [size, FPS, [(name, file.stat().st_size) for name, file in animations.items()]], made)


def _encoded(vae: AutoencoderKL, pixels: np.ndarray, poses: Sequence[Pose]) -> Tensor:
    """The latents of a picture, uint8 (S, S, 3), in these poses: float16 (poses, C, h, w)."""
    picture = PIL.Image.fromarray(pixels)
    return export.encode(vae, np.stack([draw(picture, pose) for pose in poses])).half().contiguous()


def _cached(path: Path, key: list[object], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The memory-mapped tensors at `path`; made and written first unless the file has the same `key`."""
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    if path.exists():
        with safetensors.safe_open(path, framework="pt") as file:
            valid = (file.metadata() or {}).get("of") == digest
        if valid:
            return load_file(path)
    make_folder(path.parent)
    with scratch_folder(path.parent) as scratch:
        save_file(make(), scratch / path.name, {"of": digest})  # written directly: it may be gigabytes
        os.replace(scratch / path.name, path)
    return _cached(path, key, make)
