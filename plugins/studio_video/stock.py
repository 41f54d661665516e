"""Clips by any video pipeline of diffusers: its call's arguments from the inputs of `video`.

The pipeline's own defaults apply to inputs that a request does not give.

Try it: ``studio video "a dog" --model FOLDER --frames 9 --size 704x480``
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import Parameter
from typing import Any

import studio
from studio.diffusion import prompts, stepping
from studio.diffusion.arguments import arguments, guidance_argument, parameters
from studio.diffusion.arguments import facts as facts_of
from studio.diffusion.results import as_media
from studio.diffusion.stepping import GuestState, PipelineModel
from studio.errors import InputError
from studio_video import fit

step = stepping.step

_FROM_PICTURE = {"LTXPipeline": "LTXImageToVideoPipeline", "LTX2Pipeline": "LTX2ImageToVideoPipeline"}
"""Image-to-video pipelines for the weights of text-to-video ones."""
_TEXT_ONLY = {image: text for text, image in _FROM_PICTURE.items()}
_FRAMES = ("num_frames", "video_length", "frames")
"""The pipelines' arguments for the number of frames."""
_FPS = {"Wan": 16.0, "LTX": 25.0, "Hunyuan": 15.0, "Mochi": 30.0, "SkyReels": 24.0, "StableVideo": 7.0}
"""Frames per second of families, by the beginning of the pipeline's name; others have 8."""


def start(model: PipelineModel, inputs: Any, rng: studio.Rng) -> GuestState:
    """Begin the pipeline's call. Raises InputError for inputs that it does not take."""
    name = type(model.pipe).__name__
    for each in ("to", "extend", "loop"):
        if getattr(inputs, each):
            raise InputError(each, f"`{each}` is not supported by a `{name}`, only by Studio's own video model",
                             hint=f"leave out `{each}`")  # fmt: skip
    task = task_of(model.pipe, picture=inputs.image is not None)
    made, notices = arguments_of(model.pipeline(task), inputs)
    return stepping.with_notices(stepping.start(model, made, rng, inputs, task, inputs.sampler), notices)


def finish_many(model: PipelineModel, states: Sequence[GuestState]) -> list[studio.Video]:
    """Decode the latents of all states, batched where possible."""
    return [_clip(model, state, made) for state, made in zip(states, stepping.finish(model, states), strict=True)]


def preview(model: PipelineModel, state: GuestState) -> studio.Image | None:
    """The middle frame of the predicted clean clip; the whole clip is decoded for it."""
    found = stepping.preview(model, state)
    if found is None:
        return None
    frames = _clip(model, state, found).frames
    return studio.Image.from_array(frames[len(frames) // 2])


def facts(model: PipelineModel, inputs: Any) -> dict[str, Any]:
    """The pipeline, its noise schedule, and the inputs that it got."""
    pipe = model.pipeline(task_of(model.pipe, picture=inputs.image is not None), inputs.sampler)
    found = facts_of(pipe, inputs.steps, inputs.guidance) | stepping.facts(model)
    return found | ({"sampler": inputs.sampler} if inputs.sampler else {})


def task_of(pipe: Any, *, picture: bool) -> str:
    """The class of pipeline for a request, or "" for the model's own. Raises InputError if there is none."""
    name, takes = type(pipe).__name__, parameters(pipe)
    if picture and "image" not in takes:
        if name not in _FROM_PICTURE:
            raise InputError("image", f"a `{name}` does not accept a picture", hint="use its image-to-video model")
        return _FROM_PICTURE[name]
    if not picture and name in _TEXT_ONLY:
        return _TEXT_ONLY[name]
    if not picture and takes.get("image") is Parameter.empty:
        raise InputError("image", f"a `{name}` needs a picture", hint="give `--image`")
    return ""


def arguments_of(pipe: Any, inputs: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The arguments of the pipeline's call, and notices. Raises InputError for inputs that it does not take."""
    asked = [prompts.read(each) for each in (inputs.prompt, inputs.negative)]
    notices = tuple(notice for each in asked for notice in each.notices)
    if not all(each.plain for each in asked):
        notices += ("weights and `BREAK` in the prompt are ignored: this model does not support them",)
    takes = parameters(pipe)
    if "prompt" not in takes:
        notices += ("the prompt has no effect: this model takes none",)
    width, height = inputs.sides if inputs.size else (None, None)
    _check_sides(pipe, inputs)
    made = arguments(pipe, {
        "prompt": ("prompt", asked[0].text if "prompt" in takes else None),
        "negative": ("negative_prompt", asked[1].text or None),
        "steps": ("num_inference_steps", inputs.steps), "guidance": (guidance_argument(pipe), inputs.guidance),
        "frames": (next((name for name in _FRAMES if name in takes), None), _frames(pipe, inputs.frames)),
        "size": ("width", width),
    })  # fmt: skip
    made |= {} if height is None else {"height": height}
    if inputs.fps is not None and "frame_rate" in takes:
        made["frame_rate"] = inputs.fps
    if inputs.image is not None:
        if inputs.size:
            conditioning = fit.conditioning_frames(inputs, 0)
            made["image"] = fit.as_pil(conditioning.before[0])
            notices += conditioning.notices
        else:
            made["image"] = inputs.image.pil.convert("RGB")
    return {"output_type": "np"} | made, notices


def _frames(pipe: Any, wanted: int | None) -> int | None:
    """The least number of frames that the model generates and that is enough: a multiple of its stride, plus one."""
    if wanted is None:
        return None
    stride = getattr(pipe, "vae_temporal_compression_ratio", 0) or getattr(pipe, "vae_scale_factor_temporal", 1)
    return int(-(-(wanted - 1) // stride) * stride + 1)


def _check_sides(pipe: Any, inputs: Any) -> None:
    """Raise InputError for sides that Wan's pipelines would round down."""
    if not inputs.size or not type(pipe).__name__.startswith("Wan"):
        return
    multiple = int(pipe.vae_scale_factor_spatial * max(pipe.transformer.config.patch_size[1:]))
    if any(side % multiple for side in inputs.sides):
        raise InputError("size", f"`size` is {inputs.size}; this model needs multiples of {multiple}",
                         hint=f"give each side as a multiple of {multiple}")  # fmt: skip


def _clip(model: PipelineModel, state: GuestState, result: Any) -> studio.Video:
    inputs, name = state.inputs, type(model.pipe).__name__
    fps = inputs.fps or next((fps for family, fps in _FPS.items() if name.startswith(family)), 8.0)
    made = as_media(studio.Video, model.pipe, result, fps)
    assert isinstance(made, studio.Video)
    return made if inputs.frames is None else studio.Video(made.frames[: inputs.frames], fps)
