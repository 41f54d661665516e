"""Latent diffusion without the host: the modules of a Stable Diffusion folder; encode, step and decode on tensors.

Reads the diffusers layout of `StableDiffusionPipeline`: `tokenizer/ text_encoder/ unet/ vae/ scheduler/`. `image.py`
wraps it as a generator; training and benchmarks use it too.
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
from studio.diffusion.chunks import chunks
from studio.diffusion.guidance import classifier_free_guidance
from studio.diffusion.layout import tensors_of
from studio.diffusion.rows import column, columns, guided_first, restore_order, select_rows
from studio.diffusion.samplers import SAMPLERS, TRAIN_STEPS, History, Level, StepInputs, timestep
from studio.errors import WeightsError
from studio.loaders import diffusers, read_config, transformers
from studio_diffusion.kernels import use_attend
from studio_diffusion.layout import components
from studio_diffusion.vocabulary import Vocabulary, load

_MOST_ENCODED = 64  # cached texts; each takes 18 KiB with the starter
TILE = 512  # pixels per side
_FALSE = (
    "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "use_dynamic_shifting",
    "thresholding", "euler_at_final",
)  # fmt: skip
FLOW = {
    "prediction_type": "flow_prediction", "use_flow_sigmas": True, "num_train_timesteps": TRAIN_STEPS,
    "algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint", "lower_order_final": True,
    "final_sigmas_type": "zero", "variance_type": None, **dict.fromkeys(_FALSE, False),
}  # fmt: skip
"""The settings of `DPMSolverMultistepScheduler` that affect a picture, other than `flow_shift`, with the supported
values.
"""
_COMPONENTS = ("tokenizer", "text_encoder", "unet", "vae", "scheduler", "safety_checker", "feature_extractor")


@dataclass(frozen=True)
class LatentRow:
    """One request in a batched denoising step.

    Attributes:
        x: (C, H, W) float32 latents at level `s`. Tensors on other devices are copied to the model's.
        x0_before: (C, H, W), the x_0 of the previous step; None at the first.
        text, negative: (T, W) text encoder states of the prompt and of the negative prompt.
        guidance: guidance scale of classifier-free guidance; 1 is off and halves the work.
        rescale: guidance rescale, 0 to 1 (Lin et al. 2023).
        known: (C, H, W), a cached x_0 to use instead of running the U-Net, or None.
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
        """Load the folder. `dtype` is for the U-Net and the text encoder, and for the VAE unless it is float16.

        Raises WeightsError for a model that needs another scheduler or pipeline.
        """
        components(folder, _COMPONENTS)
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
        self.vae.to(memory_format=torch.channels_last)  # 25% faster on a CPU; no gain for the U-Net
        if devices.device(device).channels_last:
            self.unet.to(memory_format=torch.channels_last)
        self.device, self.dtype = torch.device(device), dtype
        self.graphs = Graphs(device, self.unet)
        self.vocabulary = load(folder)
        self.nearest = NearestThing(self.text_encoder, self.tokenizer, self.vocabulary)
        self._encoded: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()  # shared by requests
        use_attend(self.text_encoder, self.unet, self.vae)

    @property
    def factor(self) -> int:
        """Pixels per latent along each side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """(C, H, W) of the latents of a picture."""
        return int(self.unet.config.in_channels), height // self.factor, width // self.factor

    def tokenize(self, text: str) -> tuple[list[int], list[float], str]:
        """Token ids of a text, in padded chunks of the encoder's length with begin and end tokens; the weight of each
        token; and the text that was cut, if any.
        """
        made, cut = chunks(text, self.tokenizer)
        ids: list[int] = []
        weights: list[float] = []
        for chunk, chunk_weights in made:
            missing = self.tokenizer.model_max_length - len(chunk)
            ids += [*chunk, *[self.tokenizer.pad_token_id] * missing]
            weights += [*chunk_weights, *[1.0] * missing]
        return ids, weights, cut

    def states(self, text: str) -> tuple[Tensor, str]:
        """Weighted text encoder states (T, W) of a text, in the model's dtype; and the text that was cut.

        T is a multiple of the encoder's length. Weight w multiplies a state's difference from that of the empty text.
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
        """Text encoder states (length, W) of the empty text, repeated."""
        one = self.encode(self.tokenize("")[0])
        return one.repeat(-(-length // len(one)), 1)[:length]

    def encode(self, tokens: Sequence[int]) -> Tensor:
        """Text encoder states (T, W) of one text's token ids, in the model's dtype. The latest are cached."""
        key = tuple(tokens)
        if key not in self._encoded:
            ids = self.here(torch.tensor([key]))
            self._encoded[key] = self.text_encoder(input_ids=ids).last_hidden_state[0]
            if len(self._encoded) > _MOST_ENCODED:
                self._encoded.popitem(last=False)
        self._encoded.move_to_end(key)
        return self._encoded[key]

    def here(self, x: Tensor) -> Tensor:
        """The tensor on the model's device."""
        return devices.upload(x, self.device)

    def step(self, rows: Sequence[LatentRow]) -> list[tuple[Tensor, Tensor]]:
        """One denoising step for each row: (latents at `s_next`, predicted x_0), both (C, H, W) float32.

        Rows may differ in prompt, guidance, level and sampler; all have one latent shape. In the forward pass a guided
        row counts twice, another once, and one with a `known` x_0 not at all.
        """
        order = guided_first([row.guidance > 1 for row in rows])
        return restore_order(order, self._step([rows[i] for i in order]))

    def _step(self, rows: Sequence[LatentRow]) -> list[tuple[Tensor, Tensor]]:
        """The same for rows sorted with the guided ones first."""
        x = torch.stack([self.here(row.x) for row in rows])  # (B, C, H, W)
        unknown = [index for index, row in enumerate(rows) if row.known is None]
        predicted = iter(self._predict_x0([rows[i] for i in unknown], select_rows(x, unknown)) if unknown else ())
        x0 = torch.stack([next(predicted) if row.known is None else self.here(row.known) for row in rows])
        return self._sampler_step(rows, x, x0)

    def _predict_x0(self, rows: Sequence[LatentRow], x: Tensor) -> Tensor:
        """The clean latents x_0 that the U-Net predicts for x, (B, C, H, W)."""
        guided = [row for row in rows if row.guidance > 1]
        numbers = column(
            self.device, [row.s for row in rows], [timestep(row.s) for row in (*rows, *guided)],
            [row.guidance for row in guided], [row.rescale for row in guided],
        )  # fmt: skip
        texts = [*(row.text for row in rows), *(row.negative for row in guided)]
        text = torch.stack([self.here(each) for each in texts])  # (B + G, T, W)
        rescales = any(row.rescale for row in guided)
        work = partial(self._forward, len(guided), rescales)
        return self.graphs.run((len(guided), rescales), work, [x, numbers, text])

    def _forward(self, guided: int, rescales: bool, x: Tensor, numbers: Tensor, text: Tensor) -> Tensor:
        """The same, where the first `guided` rows are guided, from the `numbers` of `_predict_x0`."""
        count = len(x)
        s, t, scale, rescale = numbers.split([count, count + guided, guided, guided])
        wide = (torch.cat([x, x[:guided]]) if guided else x).to(self.dtype)  # (B + G, C, H, W)
        v = self.unet(wide, t.flatten().long(), text).sample.float()
        return classifier_free_guidance(
            v[:count], v[count:], scale, to_x0=lambda v: x - s * v, rescale=rescale if rescales else None
        )

    def _sampler_step(self, rows: Sequence[LatentRow], x: Tensor, x0: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Apply each row's sampler; rows with the same sampler are batched."""
        levels = ([getattr(row, name) for row in rows] for name in ("s", "s_next", "s_before"))
        now, after, earlier = map(Level.flow, columns(self.device, *levels))
        before = [x0[i] if row.x0_before is None else self.here(row.x0_before) for i, row in enumerate(rows)]
        # s_before = 0 means no previous step; samplers of rectified flow do not use its x.
        inputs = StepInputs(x, x0, now, after, History(earlier, torch.stack(before), x))
        stepped = {name: SAMPLERS[name](inputs) for name in {row.sampler for row in rows}}
        return [(stepped[row.sampler][i], x0[i]) for i, row in enumerate(rows)]

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


class NearestThing:
    """Finds the nearest thing of a vocabulary to a word, by a text encoder's embeddings."""

    def __init__(self, tower: CLIPTextModel, tokenizer: Any, vocabulary: Vocabulary | None) -> None:
        """The things are embedded at the first call, which takes a second per thousand on one core."""
        self._tower, self._tokenizer = tower, tokenizer
        self._things = vocabulary.things if vocabulary else ()
        self._embedded: Tensor | None = None

    def __call__(self, word: str) -> str:
        """The nearest thing, by cosine similarity of pooled states. Raises ValueError without things."""
        if not self._things:
            raise ValueError("the vocabulary has no things")
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
    """The VAE's dtype for a model of `dtype`: float32 for float16, which overflows in many VAEs (`force_upcast` in
    their configs) and would give NaN. bfloat16 has the range of float32.
    """
    return torch.float32 if dtype == torch.float16 else dtype


def _shift(folder: Path) -> float:
    """The `flow_shift` of the folder's noise schedule. Raises WeightsError if it is not that of rectified flow."""
    path = folder / "scheduler" / "scheduler_config.json"
    config = read_config(path)
    found = {**DPMSolverMultistepScheduler().config, "_class_name": None, **config}
    for name, known in {"_class_name": "DPMSolverMultistepScheduler", **FLOW}.items():
        if found[name] != known:
            raise WeightsError(path, f"`{path}` has {name} {found[name]!r}; `image` supports only {known!r}",
                               hint="Stable Diffusion is not supported yet; use one of Studio's models")  # fmt: skip
    return float(found["flow_shift"])


def _plain(folder: Path, unet: Any, vae: Any) -> None:
    """Raise WeightsError for components whose configs need more than is supported here."""
    channels = vae.config.latent_channels
    known = [
        (unet, "in_channels", channels), (unet, "out_channels", channels), (unet, "addition_embed_type", None),
        (unet, "class_embed_type", None), (unet, "time_cond_proj_dim", None), (vae, "shift_factor", None),
        (vae, "latents_mean", None), (vae, "latents_std", None),
    ]  # fmt: skip
    for component, name, value in known:
        if (found := component.config.get(name)) != value:
            message = (
                f"`{type(component).__name__}` of `{folder}` has {name} {found!r}; `image` supports only {value!r}"
            )
            raise WeightsError(folder, message, hint="use one of Studio's models")


def _text_encoder(folder: Path) -> CLIPTextModel:
    return CLIPTextModel(transformers.config("CLIPTextConfig", folder))


def _unet(folder: Path) -> UNet2DConditionModel:
    unet: UNet2DConditionModel = diffusers.module("UNet2DConditionModel", folder)
    return unet


def build_vae(folder: Path) -> AutoencoderKL:
    """The VAE of a folder, without weights. Pictures with a side over `TILE` pixels are tiled, with tiles that overlap
    by a quarter and are blended, so that memory does not grow with the picture.
    """
    vae: AutoencoderKL = diffusers.module("AutoencoderKL", folder)
    vae.enable_tiling()
    vae.tile_sample_min_size = TILE
    vae.tile_latent_min_size = TILE // 2 ** (len(vae.config.block_out_channels) - 1)
    for module in list(vae.modules()):
        for name, child in module.named_children():
            if type(child) is nn.GroupNorm:
                setattr(module, name, _PerImageGroupNorm(child.num_groups, child.num_channels, child.eps))
    return vae


class _PerImageGroupNorm(nn.GroupNorm):
    """Normalises each picture separately.

    On a CPU torch splits the sums of a channels_last batch among its threads across pictures, so that the last bits
    would depend on the batch size.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        if len(x) == 1 or not computes_as_a_cpu(x.device):
            return super().forward(x)
        norm = super().forward
        return torch.cat([norm(each) for each in x.split(1)])


def text_name(stored: str) -> str | None:
    """A tensor's name in transformers 5, which drops the files' prefix and computes the position ids."""
    name = stored.removeprefix("text_model.")
    return None if name == "embeddings.position_ids" else name


def attention_name(stored: str) -> str:
    """A tensor's name in diffusers; older folders have attention names from before diffusers 0.18."""
    owner, _, leaf = stored.rpartition(".")
    block, _, layer = owner.rpartition(".")
    layer = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}.get(layer, layer)
    return f"{block}.{layer}.{leaf}" if block else stored
