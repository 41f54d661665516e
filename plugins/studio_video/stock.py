"""Stock video pipelines of diffusers (LTX, Wan, CogVideoX), stepped by the host, through one adapter.

A pipeline runs its own loop, over the times that its scheduler tells. Here its scheduler is `SingleStepScheduler`,
which tells one time or none, and answers with what the net takes for the clean latents. So a call of the pipeline is a
function of
latents and a time, whatever the family: no time at all gives the noise to begin with, or decodes the latents; one time
gives x_0, and this project's samplers go on from there. States are tensors, so they are saved, cancelled and replayed
as any other; previews come of x_0.

Known limits: one request a step; a model that is told a picture by its own encoder encodes it at every step; all
weights are of one dtype, also those that diffusers keeps in float32 (Wan's norms and time embedding), but for the
VAE's, which are float32 where float16 is asked.

Try it: ``studio video "a dog" --model FOLDER --frames 9 --size 704x480``
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from copy import deepcopy
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
from studio.errors import InputError, WeightsError
from studio.finite import Reading
from studio.loaders import diffusers as loaders
from studio.loaders import read_config, transformers
from studio_diffusion import prompts
from studio_diffusion.latent import vae_dtype
from studio_diffusion.layout import tensors_of
from studio_diffusion.samplers import SAMPLERS, History, Level, StepInputs
from studio_video import fit

FAMILIES = {
    "LTXPipeline": "LTXImageToVideoPipeline", "LTXImageToVideoPipeline": "LTXImageToVideoPipeline",
    "WanPipeline": None, "WanImageToVideoPipeline": "WanImageToVideoPipeline",
    "CogVideoXPipeline": None, "CogVideoXImageToVideoPipeline": "CogVideoXImageToVideoPipeline",
}  # fmt: skip
"""The pipelines that are known, and which of them takes a picture with the same weights."""
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
"""The classes that a pipeline's parts may have, and of transformers' what their configs are."""
SCHEDULERS: dict[str, dict[str, tuple[Any, ...]]] = {
    "FlowMatchEulerDiscreteScheduler": {"invert_sigmas": (False,), "stochastic_sampling": (False,)},
    "CogVideoXDDIMScheduler": {"prediction_type": ("epsilon", "v_prediction", "sample"),
                               "timestep_spacing": ("leading", "trailing", "linspace")},
}  # fmt: skip
"""Stock schedulers whose steps the sampler `euler` makes, and what their configs must say for that to be all of it."""
_REPLACEMENTS = {
    "UniPCMultistepScheduler": "a FlowMatchEulerDiscreteScheduler whose `shift` is its `flow_shift`",
    "DPMSolverMultistepScheduler": "a FlowMatchEulerDiscreteScheduler whose `shift` is its `flow_shift`",
    "CogVideoXDPMScheduler": "a CogVideoXDDIMScheduler of the same settings",
}
"""Solvers of published folders that are not made here, and the scheduler for the same net that is."""
_EMBEDS = ("prompt_embeds", "negative_prompt_embeds")
_MASKED = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask")


class SingleStepScheduler:
    """What stands in a pipeline for its scheduler: it learns the times of the real one, and takes one step or none.

    Attributes:
        schedule: (alpha, sigma, time) of each step, falling to (1, 0, 0), as the real one has them, once asked for.
        landings: (alpha, sigma) that the real one's own steps go to, once asked for.
        timesteps: what the pipeline is to go through.
    """

    order, init_noise_sigma = 1, 1.0

    def __init__(self, real: Any, device: torch.device) -> None:
        self._real, self.config, self._device = real, real.config, device
        self.schedule: tuple[tuple[float, float, float], ...] = ()
        self.landings: tuple[tuple[float, float], ...] = ()
        self.timesteps = self.sigmas = torch.zeros(0)
        self._count, self._at = 0, (1.0, 0.0, 0.0)

    def at(self, level: tuple[float, float, float] | None, steps: int = 0) -> None:
        """Let the pipeline take one step at a level; without one take none, and ask the real one for `steps` times."""
        self._at, self._count = level or self._at, steps
        numbers = torch.tensor([] if level is None else [level[2], level[1], 0.0])
        numbers = devices.upload(numbers, self._device)  # pipelines feed the time to the net as it is
        self.timesteps, self.sigmas = numbers[:1], numbers[1:]

    def set_timesteps(self, num_inference_steps: int | None = None, device: Any = None, timesteps: Any = None,
                      sigmas: Any = None, mu: float | None = None) -> None:  # fmt: skip
        """What a pipeline calls with its own schedule, which is asked of the real scheduler where it is wanted."""
        if not self._count:
            return
        real = deepcopy(self._real)
        if mu is None or not getattr(real.config, "use_dynamic_shifting", False):
            mu = None
        ways = {"mu": mu} if mu is not None else {}
        if sigmas is not None:
            even = np.linspace(1.0, 1 / self._count, self._count)  # as LTX has it, for as many as are wanted
            real.set_timesteps(sigmas=even, device=device, **ways)
        else:
            real.set_timesteps(self._count, device=device, **ways)
        self.schedule = _levels(real, self._count)
        self.landings = _landings(real, self.schedule)

    def set_begin_index(self, index: int = 0) -> None:
        """Pipelines say where they begin; here there is one step."""

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """As it is."""
        return sample

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        """What the net's answer means for x_0, float32."""
        alpha, sigma, _ = self._at
        said, x = model_output.float(), sample.float()
        kind = self.config.get("prediction_type", "flow_prediction")
        if kind == "v_prediction":
            return (alpha * x - sigma * said,)
        if kind == "epsilon":
            return ((x - sigma * said) / max(alpha, 1e-6),)
        return (said,) if kind == "sample" else (x - sigma * said,)


def _is_flow(real: Any) -> bool:
    """Whether x = (1 - s) x_0 + s e."""
    return type(real).__name__.startswith("FlowMatch")


def check_solver(folder: Path, kind: str) -> None:
    """Raise WeightsError for a class of stock schedulers whose steps are not made here."""
    if kind not in SCHEDULERS:
        instead = _REPLACEMENTS.get(kind)
        hint = f"put {instead} into its `scheduler` and model_index.json" if instead else "name another model"
        message = f"`{folder}` has a `{kind}`, which is not supported; known are {', '.join(SCHEDULERS)}"
        raise WeightsError(folder, message, hint=hint)


def check_scheduler(folder: Path, real: Any) -> None:
    """Raise WeightsError, which names what it is, for a stock scheduler whose steps are not made here."""
    kind = type(real).__name__
    check_solver(folder, kind)
    for name, known in SCHEDULERS[kind].items():
        found = real.config.get(name, known[0])
        if found not in known:
            raise WeightsError(folder, f"the `{kind}` of `{folder}` has {name} {found!r}; known: "
                               f"{', '.join(map(repr, known))}", hint="name a model with another schedule")  # fmt: skip


def _levels(real: Any, count: int) -> tuple[tuple[float, float, float], ...]:
    """(alpha, sigma, time) of `count` steps of a stock scheduler whose times are set, and the clean end."""
    times = [float(t) for t in real.timesteps][:count]  # trailing by 61 and others, DDIM adds the time -1
    if _is_flow(real):  # sigma is s
        found = [(1 - s, s, t) for s, t in zip(map(float, real.sigmas), times, strict=False)]
    else:
        bars = [float(real.alphas_cumprod[int(t)]) for t in times]
        found = [(bar**0.5, (1 - bar) ** 0.5, t) for bar, t in zip(bars, times, strict=True)]
    return (*found, (1.0, 0.0, 0.0))


def _landings(real: Any, schedule: tuple[tuple[float, float, float], ...]) -> tuple[tuple[float, float], ...]:
    """(alpha, sigma) that each step of a stock scheduler goes to: the next level, but with DDIM that of T / steps
    earlier, which is another one where T is no multiple of the steps.
    """
    if _is_flow(real):
        return tuple((alpha, sigma) for alpha, sigma, _ in schedule[1:])
    gap = real.config.num_train_timesteps // real.num_inference_steps
    bars = [float(real.alphas_cumprod[int(t) - gap] if t >= gap else real.final_alpha_cumprod)
            for _, _, t in schedule[:-1]]  # fmt: skip
    return tuple((bar**0.5, (1 - bar) ** 0.5) for bar in bars)


class StockVideo:
    """A pipeline of one folder on one device, and what differs among the families."""

    def __init__(self, folder: Path, device: str, dtype: torch.dtype) -> None:
        """Load the folder. Raises WeightsError for a pipeline of another kind, or weights that are missing."""
        index = read_config(folder / "model_index.json")
        self.name = str(index.get("_class_name"))
        if self.name not in FAMILIES:
            known = ", ".join(FAMILIES)
            raise WeightsError(folder, f"`{folder}` holds a `{self.name}`; known are {known}",
                               hint="name a model of one of these families")  # fmt: skip
        if isinstance(index.get("scheduler"), list):
            check_solver(folder, _named(folder, "scheduler", index["scheduler"])[1])
        dtypes = {"vae": vae_dtype(dtype)}
        parts = {name: _part(folder / name, *_named(folder, name, value), device, dtypes.get(name, dtype))
                 for name, value in index.items() if isinstance(value, list) and value != [None, None]}  # fmt: skip
        pipe = loaders.pipeline(self.name, index, folder / "model_index.json", parts)
        pipe.set_progress_bar_config(disable=True)
        self.pipe, self.device = pipe, torch.device(device)
        self._decodings: list[Reading] = []  # sums of what the VAE's decoder says, which pipelines clamp
        pipe.vae.decoder.register_forward_hook(self._decoded)
        for net in (pipe.vae.encoder, pipe.vae.decoder, pipe.transformer):
            net.register_forward_pre_hook(_in_its_dtype, with_kwargs=True)
        check_scheduler(folder, pipe.scheduler)
        self.time = SingleStepScheduler(pipe.scheduler, self.device)
        self.pipe.scheduler = self.time
        self._told = self.pipe

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
        """What sides are a multiple of. Wan's pipelines round others down."""
        if not self.name.startswith("Wan"):
            return 1
        return int(self.pipe.vae_scale_factor_spatial * max(self.pipe.transformer.config.patch_size[1:]))

    @property
    def stride(self) -> int:
        """Frames that a latent frame stands for; clips have a multiple of it and one more."""
        pipe = self.pipe
        return int(getattr(pipe, "vae_temporal_compression_ratio", 0) or getattr(pipe, "vae_scale_factor_temporal", 4))

    def pipeline(self, picture: bool) -> Any:
        """The pipeline with a picture or without. Raises InputError if the model has none such."""
        name = FAMILIES[self.name] if picture else self.name
        if name is None:
            raise InputError("image", f"a `{self.name}` takes no picture", hint="name its image-to-video model")
        if not picture and FAMILIES[self.name] == self.name and self.name != "LTXImageToVideoPipeline":
            raise InputError("image", f"a `{self.name}` begins with a picture", hint="give `--image`")
        if type(self._told).__name__ != name:
            self._told = getattr(diffusers, name)(**self.pipe.components)  # `from_pipe` would change their dtype
            self._told.set_progress_bar_config(disable=True)
        return self._told

    def call(self, state: PipelineState, level: tuple[float, float, float] | None, x: Tensor | None, output: str,
             steps: int = 0) -> Any:  # fmt: skip
        """The pipeline's answer: latents (`latent`) or frames (`np`), after a step at `level` or none."""
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
    """Pipelines give nets latents and pictures in the dtype of the text or of the noise; a net's own may be another."""
    dtype = next(net.parameters()).dtype
    first = tuple(each.to(dtype) for each in args[:1])
    return (*first, *args[1:]), named | {name: named[name].to(dtype) for name in ("hidden_states",) if name in named}


def _named(folder: Path, name: str, value: list[Any]) -> tuple[str, str]:
    """The library and class of a part that `model_index.json` names. Raises WeightsError for others than `PARTS`."""
    if len(value) != 2 or any(not isinstance(each, str) for each in value) or value[1] not in PARTS.get(value[0], ()):
        message = f"`{name}` of `{folder}` is made by {value!r:.80}, which is not known"
        raise WeightsError(folder, message, hint="name a model of diffusers' own classes")
    return value[0], value[1]


def _part(folder: Path, library: str, kind: str, device: str, dtype: torch.dtype) -> Any:
    """One part of a pipeline."""
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
    """A clip of a stock pipeline on its way out of noise.

    Attributes:
        x: latents as the pipeline has them, on its device as the texts are; `x0_before` what the net took for the clean
            ones at the step before.
        text: token states and masks in the order that the pipeline's `encode_prompt` gives.
        schedule: (alpha, sigma, time) of each step and of the clean end.
        landings: (alpha, sigma) that the model's own solver goes to from each step.
        picture: (H, W, 3) uint8, the first frame, or None.
        frames, wanted: how many the model makes, and how many are kept.
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
        """Each is stepped by itself."""
        return "alone", id(self)


def start(model: StockVideo, inputs: Any, rng: studio.Rng) -> PipelineState:
    """Encode the texts, draw the noise. Raises InputError for what the pipeline does not take."""
    for name in ("to", "extend", "loop"):
        if getattr(inputs, name):
            raise InputError(name, f"`{name}` is for Studio's own video model; a `{model.name}` does not take it",
                             hint=f"leave out `{name}`")  # fmt: skip
    if any(side % model.multiple for side in inputs.sides):
        raise InputError("size", f"`size` is {inputs.size}; this model makes multiples of {model.multiple}",
                         hint=f"give each side as a multiple of {model.multiple}")  # fmt: skip
    given = fit.conditioning_frames(inputs, 0)
    asked = [prompts.read(each) for each in (inputs.prompt, inputs.negative)]
    notices = (*given.notices, *(notice for each in asked for notice in each.notices))
    if inputs.sampler != "euler":
        notices += (f"drawn by `{inputs.sampler}`; `euler` is the model's own solver, as diffusers has it",)
    if not all(each.plain for each in asked):
        notices += ("weights and `BREAK` in the prompt are left out: this model's text encoder has none",)
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
            "size", f"the pipeline refuses this: {error}", hint="choose another size, or other steps"
        ) from error
    return replace(state, x=x.float(), schedule=model.time.schedule, landings=model.time.landings)


def _tokens(pipe: Any) -> int:
    """How long the pipeline's own call makes a text: Wan's `encode_prompt` alone pads to less, which its net sees."""
    return int(signature(type(pipe).__call__).parameters["max_sequence_length"].default)


def step(model: StockVideo, states: Sequence[PipelineState]) -> list[PipelineState]:
    """One denoising step of each."""
    return [_step(model, state) for state in states]


def _step(model: StockVideo, state: PipelineState) -> PipelineState:
    assert state.x is not None
    now = state.schedule[state.position]
    own = state.sampler == "euler"
    after = state.landings[state.position] if own else state.schedule[state.position + 1][:2]
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
    """The frame half-way, as the model now takes it to be; the whole clip is decoded for it."""
    if state.x0_before is None:
        return None
    return studio.Image.from_array(model.decode(state, state.x0_before)[state.wanted // 2])


def facts(model: StockVideo, inputs: Any) -> dict[str, Any]:
    """Whose pipeline it is, its noise schedule, and the sampler."""
    scheduler = type(model.time._real).__name__
    return {"pipeline": model.name, "noise_schedule": {"kind": scheduler, "steps": inputs.steps},
            "sampler": inputs.sampler}  # fmt: skip
