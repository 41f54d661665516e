"""The video model as pure pieces: encode texts and frames, one denoising step of unlike clips together, decode.

The VAE, the text tower and the tokenizer are the image starter's, in its folder. Knows nothing of the host; `video.py`
wraps it as a generator, and the same pieces serve benchmarks.

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
from studio.errors import WeightsError
from studio.loaders import allowed, read_config, transformers
from studio_diffusion import latent as pictures
from studio_diffusion import vocabulary
from studio_diffusion.kernels import on_attend
from studio_diffusion.layout import tensors_of
from studio_video.files import CONFIG
from studio_video.model import FULL, Clip, Shape, VideoTransformer, Views, pack
from studio_video.moving import Row, moved
from studio_video.texts import Texts

_TOGETHER = 8  # frames that the VAE takes at once: memory does not grow with a clip's length


def _shape(path: Path) -> Shape:
    """The sizes in a net's config. Raises WeightsError for one that is not of this net."""
    given = read_config(path)
    known = Shape().config()
    sizes = allowed(path, given, known)
    whole = all(isinstance(each, int) and not isinstance(each, bool) and each > 0 for each in sizes.values())
    if set(given) - set(known) or not whole or Shape(**sizes).width % Shape(**sizes).head_dim:
        names = ", ".join(f"`{name}`" for name in known)
        raise WeightsError(path, f"`{path}` is not of Studio's video model: it has {names}, whole numbers above 0",
                           hint="get the model again")  # fmt: skip
    return Shape(**sizes)


class LatentVideo:
    """Text tower, net and VAE on one device."""

    def __init__(self, folder: Path, starter: Path, device: str, dtype: torch.dtype) -> None:
        """Load the net of `folder` and what it shares with the image model of `starter`."""
        tokenizer = transformers.tokenizer("CLIPTokenizer", starter / "tokenizer")
        place: Any = {"device": device, "dtype": dtype}
        tower = studio.module(
            partial(_tower, starter / "text_encoder"), tensors_of(starter / "text_encoder"),
            rename=pictures.text_name, **place,
        )  # fmt: skip
        shape = _shape(folder / CONFIG)
        self.net: VideoTransformer = studio.module(
            partial(VideoTransformer, shape), sorted(folder.glob("*.safetensors")), **place
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
        self.texts = Texts(tower, tokenizer, remembered=64)
        self.vocabulary = vocabulary.load(folder)
        self.nearest = pictures.Nearest(tower, tokenizer, self.vocabulary)
        on_attend(tower, self.vae)

    @property
    def factor(self) -> int:
        """Pixels to a latent, along each side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    def latent_shape(self, frames: int, width: int, height: int) -> tuple[int, int, int, int]:
        """(T, C, h, w) of a clip's latents."""
        return frames, self.net.shape.channels, height // self.factor, width // self.factor

    def encode(self, frames: np.ndarray) -> Tensor:
        """Mean latents, float32 (T, C, h, w), of uint8 frames (T, H, W, 3)."""
        made = []
        for some in np.split(frames, range(_TOGETHER, len(frames), _TOGETHER)):
            x = self.here(torch.from_numpy(np.array(some))).permute(0, 3, 1, 2).to(self.vae.dtype)
            x = x.div(127.5).sub(1).contiguous(memory_format=torch.channels_last)
            made.append(self.vae.encode(x).latent_dist.mean.float() * self.vae.config.scaling_factor)
        return torch.cat(made)

    def decode(self, latents: Tensor) -> Tensor:
        """Frames of latents (T, C, h, w): uint8 (T, H, W, 3) on the CPU."""
        made = []
        for some in self.here(latents).split(_TOGETHER):
            z = (some / self.vae.config.scaling_factor).to(self.vae.dtype, memory_format=torch.channels_last)
            pixels = self.vae.decode(z).sample.float()  # (T, 3, H, W) in [-1, 1]
            made.append(studio.pixels(pixels.div(2).add(0.5)).permute(0, 2, 3, 1))
        return torch.cat(made)

    def here(self, x: Tensor) -> Tensor:
        """The tensor on the model's device."""
        return devices.upload(x, self.device)

    def step(self, rows: Sequence[Row], views: Views = FULL) -> list[tuple[Tensor, Tensor]]:
        """One denoising step for each row: (latents at `s_next`, present x0), both (T, C, h, w) float32.

        Rows may differ in all things: all their clips, and those without the text for rows that are guided, go through
        the net as one packed row. Nothing waits for the device.
        """
        clips = [clip for row in rows for clip in self._clips(row)]
        said = iter(pack_and_say(self.net, clips, views, self.graphs))
        answers = [[[next(said) for _ in row.passes] for _ in row.texts] for row in rows]
        return moved(rows, answers, self.device)

    def _clips(self, row: Row) -> list[Clip]:
        """What the net is asked for a row: each pass with the text, then, if it is guided, each without."""
        x, levels = self.here(row.x), torch.where(row.given, 0.0, row.s)
        return [Clip(x[a:b], row.times[a:b], levels[a:b], self.here(text)) for text in row.texts for a, b in row.passes]


def pack_and_say(
    net: VideoTransformer, clips: Sequence[Clip], views: Views, graphs: Graphs | None = None
) -> list[Tensor]:
    """What the net says of the clips: velocities (T, C, h, w) float32 of each; recorded where `graphs` are given."""
    packed = pack(clips, net.shape)

    def say(*tensors: Tensor) -> Tensor:
        return net(packed.of(*tensors), views).float()

    key = (views, tuple(packed.grids), packed.ends)
    return packed.unpack(graphs.run(key, say, packed.tensors) if graphs is not None else say(*packed.tensors))


def _tower(folder: Path) -> CLIPTextModel:
    return CLIPTextModel(transformers.config("CLIPTextConfig", folder))
