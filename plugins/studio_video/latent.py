"""The video model as pure pieces: encode texts and frames, one denoising step of unlike clips together, decode.

The VAE, the text tower and the tokenizer are the image starter's, in its folder. Knows nothing of the host; `video.py`
wraps it as a generator, and the same pieces serve benchmarks.

Try it: `LatentVideo(folder, starter, "cpu", torch.bfloat16)`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPTextModel

import studio
from studio.errors import WeightsError
from studio.loaders import allowed, read_config, transformers
from studio_diffusion import latent as pictures
from studio_diffusion import vocabulary
from studio_diffusion.kernels import on_attend
from studio_diffusion.layout import tensors_of
from studio_diffusion.samplers import SAMPLERS, Level, Move, Past
from studio_video.files import CONFIG
from studio_video.model import FULL, Clip, Shape, VideoTransformer, Views, pack
from studio_video.texts import Texts

_TOGETHER = 8  # frames that the VAE takes at once: memory does not grow with a clip's length


@dataclass(frozen=True)
class Row:
    """One request in a step.

    Attributes:
        x: (T, C, h, w) float32 latents at level `s`, clean where `given`.
        x0_before: the same as they were taken to be at the step before, or None at the first.
        times, given: (T,) the part of the movement that is over, and which frames are given.
        text, negative: (n, W) token states, without padding.
        guidance: scale of classifier-free guidance; 1 is none and costs half.
        s, s_next, s_before: noise levels in [0, 1); `s_before` is 0 at the first step.
        sampler: a key of `SAMPLERS`.
        loop: whether the last frame is the first one again.
        windows: the frames of each pass, of which neighbours overlap; the whole clip in one where it is short.
        weight: of what is seen now, in a mean with `x0_before`.
        noise: (T, C, h, w) to put on that mean for `s_next`, in place of a step of the sampler.
    """

    x: Tensor
    x0_before: Tensor | None
    times: Tensor
    given: Tensor
    text: Tensor
    negative: Tensor
    guidance: float
    s: float
    s_next: float
    s_before: float
    sampler: str
    loop: bool = False
    windows: tuple[tuple[int, int], ...] = ()
    weight: float = 1.0
    noise: Tensor | None = None


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
            **place,
        )
        self.vae.to(memory_format=torch.channels_last)
        self.device, self.dtype = torch.device(device), dtype
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
        """Mean latents, float32 (T, C, h, w) on the CPU, of uint8 frames (T, H, W, 3)."""
        made = []
        for some in np.split(frames, range(_TOGETHER, len(frames), _TOGETHER)):
            x = torch.from_numpy(np.array(some)).permute(0, 3, 1, 2).to(self.device, self.dtype)
            x = x.div(127.5).sub(1).contiguous(memory_format=torch.channels_last)
            made.append(self.vae.encode(x).latent_dist.mean.float().cpu() * self.vae.config.scaling_factor)
        return torch.cat(made)

    def decode(self, latents: Tensor) -> Tensor:
        """Frames of latents (T, C, h, w): uint8 (T, H, W, 3) on the CPU."""
        made = []
        for some in latents.split(_TOGETHER):
            z = (some / self.vae.config.scaling_factor).to(self.device, self.dtype, memory_format=torch.channels_last)
            pixels = self.vae.decode(z).sample.float()  # (T, 3, H, W) in [-1, 1]
            made.append(studio.pixels(pixels.div(2).add(0.5)).permute(0, 2, 3, 1))
        return torch.cat(made)

    def step(self, rows: Sequence[Row], views: Views = FULL) -> list[tuple[Tensor, Tensor]]:
        """One denoising step for each row: (latents at `s_next`, present x0), both (T, C, h, w) float32.

        Rows may differ in all things: all their clips, and those without the text for rows that are guided, go through
        the net as one packed row.
        """
        clips = [clip for row in rows for clip in self._clips(row)]
        said = iter(pack_and_say(self.net, clips, self.dtype, views))
        moved = []
        for row in rows:
            x = row.x.to(self.device)
            v = joined(row, [next(said) for _ in _windows(row)])
            if row.guidance > 1:
                away = joined(row, [next(said) for _ in _windows(row)])
                v = away + row.guidance * (v - away)
            if row.loop:
                v[0] = v[-1] = (v[0] + v[-1]) / 2
            still = row.given.to(self.device)[:, None, None, None]
            x0 = torch.where(still, x, x - row.s * v)
            if row.x0_before is not None:
                x0 = torch.lerp(row.x0_before.to(self.device), x0, row.weight)
            moved.append((torch.where(still, x, _move(row, x, x0)), x0))
        return moved

    def _clips(self, row: Row) -> list[Clip]:
        """What the net is asked for a row: each window with the text, then, if it is guided, each without."""
        levels = torch.where(row.given, 0.0, row.s)
        texts = [row.text, row.negative] if row.guidance > 1 else [row.text]
        return [
            Clip(*(each.to(self.device) for each in (row.x[a:b], row.times[a:b], levels[a:b], text)))
            for text in texts for a, b in _windows(row)
        ]  # fmt: skip


def pack_and_say(net: VideoTransformer, clips: Sequence[Clip], dtype: torch.dtype, views: Views) -> list[Tensor]:
    """What the net says of the clips: velocities (T, C, h, w) float32 of each."""
    packed = pack(clips, net.shape)
    return packed.unpack(net(packed, views).float())


def _windows(row: Row) -> tuple[tuple[int, int], ...]:
    return row.windows or ((0, len(row.x)),)


def joined(row: Row, parts: Sequence[Tensor]) -> Tensor:
    """The velocities of a clip from those of its windows: where they overlap the weight goes over from one to the next
    (MultiDiffusion, Bar-Tal et al. 2023, in time).
    """
    if len(parts) == 1:
        return parts[0]
    total = torch.zeros(row.x.shape, device=parts[0].device)
    weight = torch.zeros(len(row.x), 1, 1, 1, device=parts[0].device)
    for (first, last), part in zip(_windows(row), parts, strict=True):
        ramp = torch.arange(last - first, device=part.device) + 1.0
        mine = torch.minimum(ramp, ramp.flip(0))[:, None, None, None]
        total[first:last] += mine * part
        weight[first:last] += mine
    return total / weight


def _move(row: Row, x: Tensor, x0: Tensor) -> Tensor:
    """The sampler's step, frames as its rows, or fresh noise."""
    if row.noise is not None:
        return torch.lerp(x0, row.noise.to(x.device), row.s_next)
    now, after, before = (Level.flow(torch.tensor(s, device=x.device)) for s in (row.s, row.s_next, row.s_before))
    past = x0 if row.x0_before is None else row.x0_before.to(x.device)
    return SAMPLERS[row.sampler](Move(x, x0, now, after, Past(before, past, x)))


def _tower(folder: Path) -> CLIPTextModel:
    return CLIPTextModel(transformers.config("CLIPTextConfig", folder))
