"""Latent diffusion as pure pieces: the modules of a Stable Diffusion folder, and start, step and decode on tensors.

Reads the stock layout (diffusers `StableDiffusionPipeline`): `tokenizer/ text_encoder/ unet/ vae/ scheduler/`. Knows
nothing of the host; `image.py` wraps it as a generator, and the same pieces serve training and benchmarks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel

import studio
from studio import devices
from studio.attention.backends.sdpa import computes_as_a_cpu
from studio.devices.graphs import Graphs
from studio.errors import WeightsError
from studio.loaders import diffusers, read_config, transformers
from studio_diffusion.chunks import chunks
from studio_diffusion.kernels import on_attend
from studio_diffusion.layout import components, tensors_of
from studio_diffusion.rows import chosen, column, columns, guided_first, in_place
from studio_diffusion.samplers import SAMPLERS, TRAIN_STEPS, Level, Move, Past, clock
from studio_diffusion.vocabulary import Vocabulary, load

_REMEMBERED = 64  # texts; each takes 18 KiB with the starter
TILE = 512  # pixels along a side
_FALSE = (
    "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "use_dynamic_shifting",
    "thresholding", "euler_at_final",
)  # fmt: skip
FLOW = {
    "prediction_type": "flow_prediction", "use_flow_sigmas": True, "num_train_timesteps": TRAIN_STEPS,
    "algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint", "lower_order_final": True,
    "final_sigmas_type": "zero", "variance_type": None, **dict.fromkeys(_FALSE, False),
}  # fmt: skip
"""What of a `DPMSolverMultistepScheduler` decides a picture, but for `flow_shift`, and what it must be here."""
_PARTS = ("tokenizer", "text_encoder", "unet", "vae", "scheduler", "safety_checker", "feature_extractor")


@dataclass(frozen=True)
class Row:
    """One request in a batch.

    Attributes:
        x: (C, H, W) float32 latents at level `s`. Tensors are on the model's device; others are copied there.
        x0_before: (C, H, W), or None at the first step.
        text: (T, W) token states of the prompt; `negative` the same of what to keep away from.
        guidance: scale of classifier-free guidance; 1 is none and costs half.
        rescale: how far the guided x0 is brought to the contrast of the unguided one, 0 to 1 (Lin et al. 2023).
        known: (C, H, W), the clean latents where the net is not to be asked; else None.
        s, s_next, s_before: noise levels in [0, 1); `s_before` is 0 at the first step.
        sampler: a key of `SAMPLERS`.
    """

    x: Tensor
    x0_before: Tensor | None
    text: Tensor
    negative: Tensor
    guidance: float
    rescale: float
    s: float
    s_next: float
    s_before: float
    sampler: str
    known: Tensor | None = None


class LatentDiffusion:
    """Text encoder, U-Net and VAE on one device."""

    def __init__(self, folder: Path, device: str, dtype: torch.dtype) -> None:
        """Load the folder's weights. `dtype` is that of the U-Net and the text encoder, and of the VAE but for float16.

        Raises WeightsError for a model that is drawn in another way than here.
        """
        components(folder, _PARTS)
        self.shift = _shift(folder)
        self.tokenizer = transformers.tokenizer("CLIPTokenizer", folder / "tokenizer")
        place: Any = {"device": device, "dtype": dtype}
        self.text_encoder = studio.module(
            partial(_text_encoder, folder / "text_encoder"),
            tensors_of(folder / "text_encoder"),
            rename=text_name,
            **place,
        )
        self.unet = studio.module(partial(_unet, folder / "unet"), tensors_of(folder / "unet"), **place)
        self.vae = studio.module(
            partial(build_vae, folder / "vae"), tensors_of(folder / "vae"), rename=attention_name, device=device,
            dtype=vae_dtype(dtype),
        )  # fmt: skip
        _plain(folder, self.unet, self.vae)
        self.vae.to(memory_format=torch.channels_last)  # a quarter faster on a CPU; the U-Net gains nothing
        if devices.device(device).channels_last:
            self.unet.to(memory_format=torch.channels_last)
        self.device, self.dtype = torch.device(device), dtype
        self.graphs = Graphs(device, self.unet)
        self.vocabulary = load(folder)
        self.nearest = Nearest(self.text_encoder, self.tokenizer, self.vocabulary)
        self._encoded: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()  # what many requests have in common
        on_attend(self.text_encoder, self.unet, self.vae)

    @property
    def factor(self) -> int:
        """Pixels to a latent, along each side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """(C, H, W) of a picture's latents."""
        return int(self.unet.config.in_channels), height // self.factor, width // self.factor

    def tokenize(self, text: str) -> tuple[list[int], list[float], str]:
        """Token ids of a text, in chunks of the encoder's length, begin and end included and padded; the weight of each
        token; and what had to be cut, if anything.
        """
        made, cut = chunks(text, self.tokenizer)
        ids: list[int] = []
        weights: list[float] = []
        for chunk, its in made:
            missing = self.tokenizer.model_max_length - len(chunk)
            ids += [*chunk, *[self.tokenizer.pad_token_id] * missing]
            weights += [*its, *[1.0] * missing]
        return ids, weights, cut

    def states(self, text: str) -> tuple[Tensor, str]:
        """Token states (T, W) of a text, weighed, in the model's dtype; and what had to be cut.

        T is a multiple of the encoder's length. A state of weight w is w times as far from that of an empty text as it
        was.
        """
        ids, weights, cut = self.tokenize(text)
        length = self.tokenizer.model_max_length
        states = torch.cat([self.encode(ids[at : at + length]) for at in range(0, len(ids), length)])
        if set(weights) != {1.0}:
            empty = self.empty(len(states))
            share = self.here(torch.tensor(weights))[:, None]  # (T, 1)
            states = torch.lerp(empty.float(), states.float(), share).to(self.dtype)
        return states, cut

    def empty(self, length: int) -> Tensor:
        """Token states (length, W) of the empty text, repeated."""
        one = self.encode(self.tokenize("")[0])
        return one.repeat(-(-length // len(one)), 1)[:length]

    def encode(self, tokens: Sequence[int]) -> Tensor:
        """Token states (T, W) of one text's token ids, in the model's dtype. The latest are remembered."""
        key = tuple(tokens)
        if key not in self._encoded:
            ids = self.here(torch.tensor([key]))
            self._encoded[key] = self.text_encoder(input_ids=ids).last_hidden_state[0]
            if len(self._encoded) > _REMEMBERED:
                self._encoded.popitem(last=False)
        self._encoded.move_to_end(key)
        return self._encoded[key]

    def here(self, x: Tensor) -> Tensor:
        """The tensor on the model's device."""
        return devices.upload(x, self.device)

    def step(self, rows: Sequence[Row]) -> list[tuple[Tensor, Tensor]]:
        """One denoising step for each row: (latents at `s_next`, present x0), both (C, H, W) float32.

        Rows may differ in prompt, guidance, level and sampler; all have one latent shape. Guided rows take two places
        in the forward pass, others one, and those whose x0 is known none.
        """
        order = guided_first([row.guidance > 1 for row in rows])
        return in_place(order, self._step([rows[i] for i in order]))

    def _step(self, rows: Sequence[Row]) -> list[tuple[Tensor, Tensor]]:
        """The same of rows of which the guided ones come first."""
        x = torch.stack([self.here(row.x) for row in rows])  # (B, C, H, W)
        unknown = [index for index, row in enumerate(rows) if row.known is None]
        seen = iter(self._clean([rows[i] for i in unknown], chosen(x, unknown)) if unknown else ())
        x0 = torch.stack([next(seen) if row.known is None else self.here(row.known) for row in rows])
        return self._move(rows, x, x0)

    def _clean(self, rows: Sequence[Row], x: Tensor) -> Tensor:
        """What the net takes for the clean latents of x, (B, C, H, W)."""
        steered = [row for row in rows if row.guidance > 1]
        numbers = column(
            self.device, [row.s for row in rows], [clock(row.s) for row in (*rows, *steered)],
            [row.s for row in steered], [row.guidance for row in steered], [row.rescale for row in steered],
        )  # fmt: skip
        told = [*(row.text for row in rows), *(row.negative for row in steered)]
        text = torch.stack([self.here(each) for each in told])  # (B + G, T, W)
        rescales = any(row.rescale for row in steered)
        work = partial(self._answer, len(steered), rescales)
        return self.graphs.run((len(steered), rescales), work, [x, numbers, text])

    def _answer(self, guided: int, rescales: bool, x: Tensor, numbers: Tensor, text: Tensor) -> Tensor:
        """The same, where the first rows are `guided`, from the `numbers` that `_clean` sends."""
        count = len(x)
        s, t, s_far, scale, share = numbers.split([count, count + guided, guided, guided, guided])
        wide = (torch.cat([x, x[:guided]]) if guided else x).to(self.dtype)  # (B + G, C, H, W)
        v = self.unet(wide, t.flatten().long(), text).sample.float()
        v, away = v[:count], v[count:]
        x0 = x - s * v
        if not guided:
            return x0
        far = x[:guided] - s_far * (away + scale * (v[:guided] - away))
        if rescales:
            far = torch.where(share > 0, rescaled(far, x0[:guided], share), far)
        return far if guided == count else torch.cat([far, x0[guided:]])

    def _move(self, rows: Sequence[Row], x: Tensor, x0: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Apply each row's sampler; rows of one sampler move together."""
        levels = ([getattr(row, name) for row in rows] for name in ("s", "s_next", "s_before"))
        now, after, earlier = map(Level.flow, columns(self.device, *levels))
        before = [x0[i] if row.x0_before is None else self.here(row.x0_before) for i, row in enumerate(rows)]
        # At level s_before = 0 there was no step before; no sampler of flow asks where it began.
        move = Move(x, x0, now, after, Past(earlier, torch.stack(before), x))
        moved = {name: SAMPLERS[name](move) for name in {row.sampler for row in rows}}
        return [(moved[row.sampler][i], x0[i]) for i, row in enumerate(rows)]

    def latents(self, picture: Tensor) -> Tensor:
        """Mean latents (C, h, w) float32 of a picture, uint8 (H, W, 3)."""
        x = self.here(picture).permute(2, 0, 1)[None].to(self.vae.dtype).div(127.5).sub(1)
        mean = self.vae.encode(x.to(memory_format=torch.channels_last)).latent_dist.mean
        return mean[0].float() * float(self.vae.config.scaling_factor)

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures of latents (B, C, h, w): uint8 (B, H, W, 3) on the CPU."""
        z = self.here(latents) / self.vae.config.scaling_factor
        z = z.to(self.vae.dtype, memory_format=torch.channels_last)
        made = self.vae.decode(z).sample.float()  # (B, 3, H, W) in [-1, 1]
        return studio.pixels(made.div(2).add(0.5)).permute(0, 2, 3, 1)


class Nearest:
    """Of a vocabulary's things, the one that a text tower takes a word to be nearest to."""

    def __init__(self, tower: CLIPTextModel, tokenizer: Any, vocabulary: Vocabulary | None) -> None:
        """The things are embedded when first asked for: a second of one core for a thousand."""
        self._tower, self._tokenizer = tower, tokenizer
        self._things = vocabulary.things if vocabulary else ()
        self._embedded: Tensor | None = None

    def __call__(self, word: str) -> str:
        """The nearest thing by the cosine of pooled states. Raises ValueError without things."""
        if not self._things:
            raise ValueError("there are no things to be near to")
        if self._embedded is None:
            parts = (self._embed(self._things[at : at + 64]) for at in range(0, len(self._things), 64))
            self._embedded = torch.cat(list(parts))
        return self._things[int((self._embedded @ self._embed([word])[0]).argmax())]

    @torch.inference_mode()
    def _embed(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (len, W), float32."""
        ids = self._tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").input_ids
        pooled = self._tower(input_ids=ids.to(self._tower.device)).pooler_output
        return F.normalize(pooled.float(), dim=-1)


def vae_dtype(dtype: torch.dtype) -> torch.dtype:
    """What a VAE is computed in where the rest is of `dtype`: float32 for float16, whose range many VAEs leave (their
    configs say `force_upcast`): the picture would be NaN. bfloat16 has the range of float32.
    """
    return torch.float32 if dtype == torch.float16 else dtype


def rescaled(x0: Tensor, plain: Tensor, share: Tensor) -> Tensor:
    """Guided latents (B, C, H, W) with the plain ones' deviation, mixed by `share` (B, 1, 1, 1) into what they were.

    Lin et al. 2023, equations 15 and 16, applied to x_0, whose contrast it is that high guidance inflates.
    """
    ratio = plain.std((1, 2, 3), keepdim=True) / x0.std((1, 2, 3), keepdim=True)
    return x0 * (share * ratio + 1 - share)


def _shift(folder: Path) -> float:
    """How far the folder's noise schedule is shifted. Raises WeightsError for one that is not a rectified flow's."""
    path = folder / "scheduler" / "scheduler_config.json"
    stock = read_config(path)
    found = {**DPMSolverMultistepScheduler().config, "_class_name": None, **stock}
    for name, known in {"_class_name": "DPMSolverMultistepScheduler", **FLOW}.items():
        if found[name] != known:
            raise WeightsError(path, f"`{path}` has {name} {found[name]!r}; `image` draws with {known!r} only",
                               hint="stock Stable Diffusion is not drawn yet: name one of Studio's")  # fmt: skip
    return float(found["flow_shift"])


def _plain(folder: Path, unet: Any, vae: Any) -> None:
    """Raise WeightsError for parts whose configs ask for more than is done here."""
    channels = vae.config.latent_channels
    known = [
        (unet, "in_channels", channels), (unet, "out_channels", channels), (unet, "addition_embed_type", None),
        (unet, "class_embed_type", None), (unet, "time_cond_proj_dim", None), (vae, "shift_factor", None),
        (vae, "latents_mean", None), (vae, "latents_std", None),
    ]  # fmt: skip
    for part, name, value in known:
        if (found := part.config.get(name)) != value:
            message = f"`{type(part).__name__}` of `{folder}` has {name} {found!r}; `image` draws with {value!r} only"
            raise WeightsError(folder, message, hint="name one of Studio's models")


def _text_encoder(folder: Path) -> CLIPTextModel:
    return CLIPTextModel(transformers.config("CLIPTextConfig", folder))


def _unet(folder: Path) -> UNet2DConditionModel:
    unet: UNet2DConditionModel = diffusers.module("UNet2DConditionModel", folder)
    return unet


def build_vae(folder: Path) -> AutoencoderKL:
    """The VAE of a folder without its weights. Pictures with a side over `TILE` pixels pass in tiles that overlap by a
    quarter and blend, so that memory does not grow with the picture.
    """
    vae: AutoencoderKL = diffusers.module("AutoencoderKL", folder)
    vae.enable_tiling()
    vae.tile_sample_min_size = TILE
    vae.tile_latent_min_size = TILE // 2 ** (len(vae.config.block_out_channels) - 1)
    for module in list(vae.modules()):
        for name, child in module.named_children():
            if type(child) is nn.GroupNorm:
                setattr(module, name, _NormEach(child.num_groups, child.num_channels, child.eps))
    return vae


class _NormEach(nn.GroupNorm):
    """Normalises each picture by itself.

    On a CPU torch shares the sums of a channels_last batch out among its threads without regard to where a picture
    ends, so that the last bits would depend on how many are decoded together.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        if len(x) == 1 or not computes_as_a_cpu(x.device):
            return super().forward(x)
        norm = super().forward
        return torch.cat([norm(each) for each in x.split(1)])


def text_name(stored: str) -> str | None:
    """Transformers 5 keeps the tower without the prefix that files have, and makes the positions itself."""
    name = stored.removeprefix("text_model.")
    return None if name == "embeddings.position_ids" else name


def attention_name(stored: str) -> str:
    """Older folders have the names that attention had before diffusers 0.18."""
    owner, _, leaf = stored.rpartition(".")
    block, _, layer = owner.rpartition(".")
    layer = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}.get(layer, layer)
    return f"{block}.{layer}.{leaf}" if block else stored
