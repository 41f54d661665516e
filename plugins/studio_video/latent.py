"""The video model without the host: encode prompts and frames, one batched denoising step, decode.

The VAE, the text encoder and the tokenizer are those of the image starter, in its folder. `video.py` wraps it as a
generator; benchmarks use it too.

Try it: `LatentVideo(folder, starter, "cpu", torch.bfloat16)`
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPTextModel

import studio
from studio import devices
from studio.devices.graphs import Graphs
from studio.diffusion.layout import tensors_of
from studio.errors import WeightsError
from studio.loaders import allowed, read_config, transformers
from studio_diffusion import latent as pictures
from studio_diffusion import vocabulary
from studio_diffusion.kernels import use_attend
from studio_video.denoising import VideoRow, step_rows
from studio_video.files import CONFIG
from studio_video.model import VideoConfig, VideoTransformer, pack
from studio_video.packing import FULL, AttentionPattern, VideoSample
from studio_video.texts import TextEncoder

_VAE_BATCH = 8  # frames per VAE batch, so that memory does not grow with the length of a clip


def _config(path: Path) -> VideoConfig:
    """The sizes in `config.json`. Raises WeightsError for the config of another network."""
    given = read_config(path)
    known = VideoConfig().as_dict()
    sizes = allowed(path, given, known)
    whole = all(isinstance(each, int) and not isinstance(each, bool) and each > 0 for each in sizes.values())
    if set(given) - set(known) or not whole or VideoConfig(**sizes).width % VideoConfig(**sizes).head_dim:
        names = ", ".join(f"`{name}`" for name in known)
        raise WeightsError(path, f"`{path}` must have {names}, each a whole number above 0",
                           hint="download the model again")  # fmt: skip
    return VideoConfig(**sizes)


class LatentVideo:
    """Text encoder, network and VAE on one device."""

    def __init__(self, folder: Path, starter: Path, device: str, dtype: torch.dtype) -> None:
        """Load the network of `folder`, and the text encoder and VAE of the image model in `starter`."""
        tokenizer = transformers.tokenizer("CLIPTokenizer", starter / "tokenizer")
        place: Any = {"device": device, "dtype": dtype}
        tower = studio.module(
            partial(_tower, starter / "text_encoder"), tensors_of(starter / "text_encoder"),
            rename=pictures.text_name, **place,
        )  # fmt: skip
        config = _config(folder / CONFIG)
        self.net: VideoTransformer = studio.module(
            partial(VideoTransformer, config), sorted(folder.glob("*.safetensors")), **place
        )
        self.vae: AutoencoderKL = studio.module(
            partial(pictures.build_vae, starter / "vae"),
            tensors_of(starter / "vae"),
            rename=pictures.attention_name,
            device=device,
            dtype=pictures.vae_dtype(dtype),
        )
        self.vae.to(memory_format=torch.channels_last)
        self.device, self.dtype = torch.device(device), dtype
        self.graphs = Graphs(device, self.net)
        self.texts = TextEncoder(tower, tokenizer, cache_size=64)
        self.vocabulary = vocabulary.load(folder)
        self.nearest = pictures.NearestThing(tower, tokenizer, self.vocabulary)
        use_attend(tower, self.vae)

    @property
    def factor(self) -> int:
        """Pixels per latent along each side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    def latent_shape(self, frames: int, width: int, height: int) -> tuple[int, int, int, int]:
        """(T, C, h, w) of a clip's latents."""
        return frames, self.net.config.channels, height // self.factor, width // self.factor

    def encode(self, frames: np.ndarray) -> Tensor:
        """Mean latents, float32 (T, C, h, w), of uint8 frames (T, H, W, 3)."""
        made = []
        for some in np.split(frames, range(_VAE_BATCH, len(frames), _VAE_BATCH)):
            x = self.here(torch.from_numpy(np.array(some))).permute(0, 3, 1, 2).to(self.vae.dtype)
            x = x.div(127.5).sub(1).contiguous(memory_format=torch.channels_last)
            made.append(self.vae.encode(x).latent_dist.mean.float() * self.vae.config.scaling_factor)
        return torch.cat(made)

    def decode(self, latents: Tensor) -> Tensor:
        """Frames of latents (T, C, h, w): uint8 (T, H, W, 3) on the CPU."""
        made = []
        for some in self.here(latents).split(_VAE_BATCH):
            z = (some / self.vae.config.scaling_factor).to(self.vae.dtype, memory_format=torch.channels_last)
            pixels = self.vae.decode(z).sample.float()  # (T, 3, H, W) in [-1, 1]
            made.append(studio.pixels(pixels.div(2).add(0.5)).permute(0, 2, 3, 1))
        return torch.cat(made)

    def here(self, x: Tensor) -> Tensor:
        """The tensor on the model's device."""
        return devices.upload(x, self.device)

    def step(self, rows: Sequence[VideoRow], pattern: AttentionPattern = FULL) -> list[tuple[Tensor, Tensor]]:
        """One denoising step for each row: (latents at `s_next`, predicted x_0), both (T, C, h, w) float32.

        Rows may differ in everything: all clips, and for guided rows those with the negative prompt, are packed into
        one forward pass. Nothing waits for the device.
        """
        clips = [clip for row in rows for clip in self._clips(row)]
        outputs = iter(predict_velocities(self.net, clips, pattern, self.graphs))
        velocities = [[[next(outputs) for _ in row.passes] for _ in row.texts] for row in rows]
        return step_rows(rows, velocities, self.device)

    def _clips(self, row: VideoRow) -> list[VideoSample]:
        """The network's inputs for a row: each pass with the prompt, and if guided each with the negative prompt."""
        x, levels = self.here(row.x), torch.where(row.given, 0.0, row.s)
        return [
            VideoSample(x[a:b], row.times[a:b], levels[a:b], self.here(text))
            for text in row.texts for a, b in row.passes
        ]  # fmt: skip


def predict_velocities(
    net: VideoTransformer, clips: Sequence[VideoSample], pattern: AttentionPattern, graphs: Graphs | None = None
) -> list[Tensor]:
    """The network's velocities (T, C, h, w) float32 of each clip; by CUDA graphs where `graphs` are given."""
    packed = pack(clips, net.config)

    def forward(*tensors: Tensor) -> Tensor:
        return net(packed.of(*tensors), pattern).float()

    key = (pattern, tuple(packed.grids), packed.ends)
    return packed.unpack(graphs.run(key, forward, packed.tensors) if graphs is not None else forward(*packed.tensors))


def _tower(folder: Path) -> CLIPTextModel:
    return CLIPTextModel(transformers.config("CLIPTextConfig", folder))
