"""Video pipelines of diffusers (LTX, Wan, CogVideoX), stepped by the host through one adapter.

A pipeline runs its own loop over its scheduler's timesteps. Here its scheduler is `SingleStepScheduler`, which has one
timestep or none and returns the predicted x_0. So a call of the pipeline is a function of latents and a timestep, for
every family: without a timestep it returns the initial noise, or decodes the latents; with one it returns x_0, and the
samplers of this project do the rest. States are tensors, so they are autosaved, cancelled and replayed as any other,
and previews show x_0.

Known limits: one request per step; an image-to-video model encodes its picture at every step; all weights have one
dtype, even those that diffusers keeps in float32 (Wan's norms and timestep embedding), except the VAE's, which are
float32 for float16.

Try it: ``studio video "a dog" --model FOLDER --frames 9 --size 704x480``
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor

import studio
from studio import devices
from studio.diffusion.layout import tensors_of
from studio.errors import InputError, WeightsError
from studio.finite import Reading
from studio.loaders import diffusers as loaders
from studio.loaders import read_config, transformers
from studio_diffusion import prompts
from studio_diffusion.latent import vae_dtype
from studio_diffusion.samplers import SAMPLERS, History, Level, StepInputs
from studio_video import fit
from studio_video.single_step import SingleStepScheduler, check_scheduler, check_solver

FAMILIES = {
    "LTXPipeline": "LTXImageToVideoPipeline", "LTXImageToVideoPipeline": "LTXImageToVideoPipeline",
    "WanPipeline": None, "WanImageToVideoPipeline": "WanImageToVideoPipeline",
    "CogVideoXPipeline": None, "CogVideoXImageToVideoPipeline": "CogVideoXImageToVideoPipeline",
}  # fmt: skip
"""The supported pipelines, and the image-to-video pipeline for the same weights."""
PARTS: dict[str, dict[str, str]] = {
    "transformers": {
        "T5EncoderModel": "T5Config", "UMT5EncoderModel": "UMT5Config", "CLIPVisionModel": "CLIPVisionConfig",
        "CLIPVisionModelWithProjection": "CLIPVisionConfig", "T5Tokenizer": "tokenizer", "T5TokenizerFast": "tokenizer",
        "CLIPImageProcessor": "processor", "CLIPImageProcessorFast": "processor",
    },
    "diffusers": dict.fromkeys((
        "AutoencoderKLCogVideoX", "AutoencoderKLLTXVideo", "AutoencoderKLWan", "CogVideoXTransformer3DModel",
        "LTXVideoTransformer3DModel", "WanTransformer3DModel", "CogVideoXDDIMScheduler", "CogVideoXDPMScheduler",
        "DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler",
    ), ""),
}  # fmt: skip
"""The allowed classes of components, with the config classes of those of transformers."""
_EMBEDS = ("prompt_embeds", "negative_prompt_embeds")
_MASKED = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask")


class StockVideo:
    """A pipeline on one device, and the differences between the families."""

    def __init__(self, folder: Path, device: str, dtype: torch.dtype) -> None:
        """Load the folder. Raises WeightsError for an unsupported pipeline, or missing weights."""
        index = read_config(folder / "model_index.json")
        self.name = str(index.get("_class_name"))
        if self.name not in FAMILIES:
            known = ", ".join(FAMILIES)
            raise WeightsError(folder, f"`{folder}` is a `{self.name}`; supported: {known}",
                               hint="use a model of one of these families")  # fmt: skip
        if isinstance(index.get("scheduler"), list):
            check_solver(folder, _named(folder, "scheduler", index["scheduler"])[1])
        dtypes = {"vae": vae_dtype(dtype)}
        parts = {name: _part(folder / name, *_named(folder, name, value), device, dtypes.get(name, dtype))
                 for name, value in index.items() if isinstance(value, list) and value != [None, None]}  # fmt: skip
        pipe = loaders.pipeline(self.name, index, folder / "model_index.json", parts)
        pipe.set_progress_bar_config(disable=True)
        self.pipe, self.device = pipe, torch.device(device)
        self._decodings: list[Reading] = []  # sums of the VAE decoder's outputs, which pipelines clamp
        pipe.vae.decoder.register_forward_hook(self._decoded)
        for net in (pipe.vae.encoder, pipe.vae.decoder, pipe.transformer):
            net.register_forward_pre_hook(_in_its_dtype, with_kwargs=True)
        check_scheduler(folder, pipe.scheduler)
        self.time = SingleStepScheduler(pipe.scheduler, self.device)
        self.pipe.scheduler = self.time
        self._pipeline = self.pipe

    def _decoded(self, module: Any, given: Any, made: Any) -> None:
        first = made[0] if isinstance(made, tuple) else made
        self._decodings.append(Reading(first, "the decoded frames"))

    def here(self, x: Tensor) -> Tensor:
        """The tensor on the pipeline's device."""
        return devices.upload(x, self.device)

    def decode(self, state: PipelineState, x: Tensor | None) -> np.ndarray:
        """Frames of latents, uint8 (T, H, W, 3). Raises NotFinite."""
        self._decodings.clear()
        frames = np.asarray(self.call(state, None, x, "np"))[0]  # (T, H, W, 3) in [0, 1]
        for reading in self._decodings:
            reading.read()
        self._decodings.clear()
        return studio.pixels(torch.from_numpy(frames)).numpy()

    @property
    def multiple(self) -> int:
        """The multiple that sides must have. Wan's pipelines round others down."""
        if not self.name.startswith("Wan"):
            return 1
        return int(self.pipe.vae_scale_factor_spatial * max(self.pipe.transformer.config.patch_size[1:]))

    @property
    def stride(self) -> int:
        """Frames per latent frame; clips have a multiple of it plus one."""
        pipe = self.pipe
        return int(getattr(pipe, "vae_temporal_compression_ratio", 0) or getattr(pipe, "vae_scale_factor_temporal", 4))

    def pipeline(self, picture: bool) -> Any:
        """The pipeline with a picture or without. Raises InputError if the model does not support it."""
        name = FAMILIES[self.name] if picture else self.name
        if name is None:
            raise InputError("image", f"a `{self.name}` takes no picture", hint="use its image-to-video model")
        if not picture and FAMILIES[self.name] == self.name and self.name != "LTXImageToVideoPipeline":
            raise InputError("image", f"a `{self.name}` needs a picture", hint="give `--image`")
        if type(self._pipeline).__name__ != name:
            self._pipeline = getattr(diffusers, name)(**self.pipe.components)  # `from_pipe` would change their dtype
            self._pipeline.set_progress_bar_config(disable=True)
        return self._pipeline

    def call(self, state: PipelineState, level: tuple[float, float, float] | None, x: Tensor | None, output: str,
             steps: int = 0) -> Any:  # fmt: skip
        """The pipeline's output, latents (`latent`) or frames (`np`), after one step at `level` or none."""
        self.time.at(level, steps)
        picture = None if state.picture is None else fit.as_pil(state.picture)
        embeds = dict(zip(_MASKED if len(state.text) == 4 else _EMBEDS, state.text, strict=True))
        more: dict[str, Any] = {} if picture is None else {"image": picture}
        more |= {"frame_rate": state.fps} if self.name.startswith("LTX") else {}
        if x is not None:
            x = self.here(x).to(self.pipe.vae.dtype if output == "np" else x.dtype)
        if state.guidance <= 1:
            embeds = {name: each for name, each in embeds.items() if not name.startswith("negative")}
        return self.pipeline(picture is not None)(
            width=state.size[0], height=state.size[1], num_frames=state.frames, num_inference_steps=1,
            guidance_scale=state.guidance, latents=x, output_type=output,
            generator=torch.Generator().manual_seed(state.seed), return_dict=False,
            **{name: self.here(each) for name, each in embeds.items()}, **more,
        )[0]  # fmt: skip


def _in_its_dtype(net: torch.nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Cast inputs to the network's dtype: pipelines use the dtype of the text or of the noise."""
    dtype = next(net.parameters()).dtype
    first = tuple(each.to(dtype) for each in args[:1])
    return (*first, *args[1:]), named | {name: named[name].to(dtype) for name in ("hidden_states",) if name in named}


def _named(folder: Path, name: str, value: list[Any]) -> tuple[str, str]:
    """The library and class of a component in `model_index.json`. Raises WeightsError if not in `PARTS`."""
    if len(value) != 2 or any(not isinstance(each, str) for each in value) or value[1] not in PARTS.get(value[0], ()):
        message = f"`{name}` of `{folder}` is a {value!r:.80}, which is not supported"
        raise WeightsError(folder, message, hint="use a model of diffusers' own classes")
    return value[0], value[1]


def _part(folder: Path, library: str, kind: str, device: str, dtype: torch.dtype) -> Any:
    """One component of a pipeline."""
    if library == "transformers":
        what = PARTS[library][kind]
        if what == "tokenizer":
            return transformers.tokenizer(kind, folder)
        if what == "processor":
            return transformers.image_processor(kind, folder)
        return transformers.model(kind, what, folder).to(device, dtype)
    if kind.endswith("Scheduler"):
        return loaders.scheduler(kind, folder)
    return studio.module(partial(loaders.module, kind, folder), tensors_of(folder), device=device, dtype=dtype)


@dataclass(frozen=True, kw_only=True, eq=False)
class PipelineState(studio.State):
    """The state of a clip of a diffusers pipeline being denoised.

    Attributes:
        x: latents as the pipeline has them, on its device as the texts are; `x0_before` what the net took for the clean
            ones at the step before.
        text: token states and masks in the order that the pipeline's `encode_prompt` gives.
        schedule: (alpha, sigma, timestep) of each step and of the clean end.
        landings: (alpha, sigma) that the model's own scheduler goes to from each step.
        picture: (H, W, 3) uint8, the first frame, or None.
        frames, wanted: the frames that the model generates, and those that are returned.
    """

    x: Tensor | None
    x0_before: Tensor | None
    text: tuple[Tensor, ...]
    schedule: tuple[tuple[float, float, float], ...]
    landings: tuple[tuple[float, float], ...]
    guidance: float
    sampler: str
    fps: float
    size: tuple[int, int]
    frames: int
    wanted: int
    seed: int
    picture: Tensor | None

    @property
    def key(self) -> Hashable:
        """Requests are never batched."""
        return "alone", id(self)


def start(model: StockVideo, inputs: Any, rng: studio.Rng) -> PipelineState:
    """Encode the prompts, sample the noise. Raises InputError for inputs that the pipeline does not support."""
    for name in ("to", "extend", "loop"):
        if getattr(inputs, name):
            raise InputError(name, f"`{name}` is not supported by a `{model.name}`, only by Studio's own video model",
                             hint=f"leave out `{name}`")  # fmt: skip
    if any(side % model.multiple for side in inputs.sides):
        raise InputError("size", f"`size` is {inputs.size}; this model needs multiples of {model.multiple}",
                         hint=f"give each side as a multiple of {model.multiple}")  # fmt: skip
    given = fit.conditioning_frames(inputs, 0)
    asked = [prompts.read(each) for each in (inputs.prompt, inputs.negative)]
    notices = (*given.notices, *(notice for each in asked for notice in each.notices))
    if inputs.sampler != "euler":
        notices += (f"the sampler is `{inputs.sampler}`; `euler` equals the model's own scheduler in diffusers",)
    if not all(each.plain for each in asked):
        notices += ("weights and `BREAK` in the prompt are ignored: this model does not support them",)
    frames = -(-(inputs.frames - 1) // model.stride) * model.stride + 1
    pipe = model.pipeline(inputs.image is not None)
    encoded = pipe.encode_prompt(
        prompt=asked[0].text, negative_prompt=asked[1].text, do_classifier_free_guidance=inputs.guidance > 1,
        device=model.device, max_sequence_length=_tokens(pipe),
    )  # fmt: skip
    state = PipelineState(
        steps=inputs.steps, notices=notices, x=None, x0_before=None,
        text=tuple(model.here(torch.zeros(0) if each is None else each) for each in encoded), schedule=(),
        landings=(), guidance=inputs.guidance, sampler=inputs.sampler, fps=inputs.fps, size=inputs.sides, frames=frames,
        wanted=inputs.frames, seed=rng.torch_seed,
        picture=torch.from_numpy(given.before[0].copy()) if inputs.image else None,
    )  # fmt: skip
    try:
        x = model.call(state, None, None, "latent", steps=inputs.steps)
    except ValueError as error:
        raise InputError(
            "size", f"the pipeline rejects this: {error}", hint="choose another size, or other steps"
        ) from error
    return replace(state, x=x.float(), schedule=model.time.schedule, landings=model.time.landings)


def _tokens(pipe: Any) -> int:
    """The pipeline's text length: the default of Wan's `encode_prompt` is shorter, which changes the output."""
    return int(signature(type(pipe).__call__).parameters["max_sequence_length"].default)


def step(model: StockVideo, states: Sequence[PipelineState]) -> list[PipelineState]:
    """One denoising step for each state."""
    return [_step(model, state) for state in states]


def _step(model: StockVideo, state: PipelineState) -> PipelineState:
    assert state.x is not None
    now = state.schedule[state.position]
    is_default = state.sampler == "euler"
    after = state.landings[state.position] if is_default else state.schedule[state.position + 1][:2]
    before = state.schedule[state.position - 1] if state.position else (1.0, 0.0, 0.0)
    x0 = model.call(state, now, state.x, "latent").float()
    levels = [Level(torch.tensor(alpha), torch.tensor(sigma)) for alpha, sigma in (now[:2], after, before[:2])]
    noisy = model.here(state.x)
    past = History(levels[2], x0 if state.x0_before is None else model.here(state.x0_before), noisy)
    x = SAMPLERS[state.sampler](StepInputs(noisy, x0, levels[0], levels[1], past))
    return replace(state, position=state.position + 1, x=x, x0_before=x0)


def finish(model: StockVideo, state: PipelineState) -> studio.Video:
    """Decode the latents."""
    return studio.Video(model.decode(state, state.x)[: state.wanted], state.fps)


def preview(model: StockVideo, state: PipelineState) -> studio.Image | None:
    """The middle frame of the predicted x_0; the whole clip is decoded for it."""
    if state.x0_before is None:
        return None
    return studio.Image.from_array(model.decode(state, state.x0_before)[state.wanted // 2])


def facts(model: StockVideo, inputs: Any) -> dict[str, Any]:
    """The pipeline, its noise schedule, and the sampler."""
    scheduler = type(model.time._real).__name__
    return {"pipeline": model.name, "noise_schedule": {"kind": scheduler, "steps": inputs.steps},
            "sampler": inputs.sampler}  # fmt: skip
