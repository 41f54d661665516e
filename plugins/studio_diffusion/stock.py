"""Pictures by any text-to-image pipeline of diffusers: its call's arguments from the inputs of `image`.

A pipeline's own defaults hold for what a request does not give. A picture selects the image-to-image or inpainting
pipeline of the same family, unless the pipeline takes pictures itself (instruction edits).

Try it: ``studio image "a red apple" --model FOLDER``
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
from diffusers.pipelines import auto_pipeline

import studio
from studio.diffusion import prompts, stepping
from studio.diffusion.arguments import arguments, guidance_argument, parameters
from studio.diffusion.arguments import facts as facts_of
from studio.diffusion.results import as_media
from studio.diffusion.schedulers import is_flow
from studio.diffusion.stepping import GuestState, PipelineModel
from studio.errors import InputError
from studio_diffusion import edit, embeds
from studio_diffusion.inputs import ImageInputs

step = stepping.step

_TEXT, _IMAGE, _INPAINT = (
    auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING, auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING,
    auto_pipeline.AUTO_INPAINT_PIPELINES_MAPPING,
)  # fmt: skip


def start(model: PipelineModel, inputs: ImageInputs, rng: studio.Rng) -> GuestState:
    """Begin the pipeline's call. Raises InputError for inputs that it does not take."""
    for name in ("fast", "cache"):
        if getattr(inputs, name):
            raise InputError(name, f"`{name}` is only for Studio's own models", hint=f"leave out `{name}`")
    task = task_of(model.pipe, picture=inputs.image is not None, mask=_canvas_has_mask(inputs))
    _check_clip_skip(model.pipe, inputs.clip_skip)
    made, notices = arguments_of(model, model.pipeline(task), inputs)
    return stepping.with_notices(stepping.start(model, made, rng, inputs, task, inputs.sampler), notices)


def finish_many(model: PipelineModel, states: Sequence[GuestState]) -> list[studio.Image]:
    """Decode the latents of all states, batched where possible."""
    return [_picture(model, state, result) for state, result in
            zip(states, stepping.finish(model, states), strict=True)]  # fmt: skip


def preview(model: PipelineModel, state: GuestState) -> studio.Image | None:
    """Decode the predicted clean sample."""
    found = stepping.preview(model, state)
    return None if found is None else _picture(model, state, found)


def facts(model: PipelineModel, inputs: ImageInputs) -> dict[str, Any]:
    """The pipeline, its noise schedule, and what of the inputs it was given."""
    task = task_of(model.pipe, picture=inputs.image is not None, mask=_canvas_has_mask(inputs))
    pipe = model.pipeline(task, inputs.sampler)
    found = facts_of(pipe, inputs.steps, inputs.guidance) | stepping.facts(model, task)
    return found | ({"sampler": inputs.sampler} if inputs.sampler else {})


def task_of(pipe: Any, *, picture: bool, mask: bool) -> str:
    """The class of pipeline for a request, or "" for the model's own. Raises InputError if there is none."""
    name = type(pipe).__name__
    takes = parameters(pipe)
    if {"num_frames", "video_length", "frames"} & takes.keys():
        raise InputError("model", f"the model is a `{name}`, which makes clips", hint="use `studio video`")
    family = next((key for table in (_TEXT, _IMAGE, _INPAINT) for key, each in table.items()
                   if each.__name__ == name), None)  # fmt: skip
    if not picture:
        required = "image" in takes and family is not None and all(each.__name__ != name for each in _TEXT.values())
        return str(_TEXT[family].__name__) if required and family in _TEXT else ""
    wanted = "mask_image" if mask else "image"
    is_control = getattr(pipe, "controlnet", None) is not None and _control_argument(pipe) == "image"
    if wanted in takes and ("mask_image" in takes) == mask and not is_control:
        return ""
    table = _INPAINT if mask else _IMAGE
    if family is None or family not in table:
        what = "inpainting" if mask else "image-to-image"
        raise InputError("image", f"a `{name}` model does not support {what}", hint="leave out `image`, or use "
                         "another model")  # fmt: skip
    return str(table[family].__name__)


def arguments_of(model: PipelineModel, pipe: Any, inputs: ImageInputs) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The arguments of the pipeline's call, and notices. Raises InputError for inputs that it does not take."""
    made = arguments(pipe, {
        "steps": ("num_inference_steps", inputs.steps), "guidance": (guidance_argument(pipe), inputs.guidance),
        "rescale": ("guidance_rescale", inputs.rescale or None), "strength": ("strength", inputs.strength),
        "control_scale": ("controlnet_conditioning_scale", _single(inputs.control_scale)),
        "clip_skip": ("clip_skip", inputs.clip_skip),
        "ip_image": ("ip_adapter_image", [each.pil.convert("RGB") for each in inputs.ip_image] or None),
    })  # fmt: skip
    _check_steps(pipe, inputs)
    prompt, notices = _prompt_arguments(model, pipe, inputs)
    picture, more = _picture_arguments(pipe, inputs)
    control = {_control_argument(pipe): _single(_controls(inputs))} if inputs.control else {}
    return {"output_type": "np"} | prompt | made | control | picture, (*notices, *more)


def _check_clip_skip(pipe: Any, clip_skip: int | None) -> None:
    """Raise InputError for more layers than the text encoders have, besides the one that is used."""
    found = [getattr(getattr(pipe, name, None), "config", None) for name in ("text_encoder", "text_encoder_2")]
    counts = [getattr(each, "num_hidden_layers", None) for each in found]
    layers = [each for each in counts if isinstance(each, int)]
    most = min(layers, default=0) - (len(layers) > 1)  # two encoders: the last layer is never used
    if clip_skip is not None and layers and clip_skip > most:
        message = f"`clip_skip` is {clip_skip}; this model has {most} layers that can be skipped"
        raise InputError("clip_skip", message, hint=f"give {most} or less" if most else "leave it out")


def _check_steps(pipe: Any, inputs: ImageInputs) -> None:
    """Raise InputError if the strength leaves none of the steps; pipelines of flow matching make at least one."""
    defaults = parameters(pipe)
    steps = inputs.steps or defaults.get("num_inference_steps")
    strength = defaults.get("strength") if inputs.strength is None else inputs.strength
    if inputs.image is None or not isinstance(steps, int) or not isinstance(strength, int | float):
        return
    if strength > 0 and int(steps * strength) < 1 and not is_flow(pipe.scheduler.config):
        message = f"`strength` is {strength:g} of {steps} steps, which is less than one step"
        raise InputError("strength", message, hint=f"give `steps` of {math.ceil(1 / strength)} or more, or a higher "
                         "`strength`")  # fmt: skip


def _control_argument(pipe: Any) -> str:
    """The argument for the picture that a ControlNet follows. Raises InputError if the pipeline takes none."""
    if "control_image" in parameters(pipe):
        return "control_image"
    if getattr(pipe, "controlnet", None) is None:
        raise InputError("control", f"a `{type(pipe).__name__}` takes no `control`", hint="give a `controlnet` too")
    return "image"


def _controls(inputs: ImageInputs) -> list[PIL.Image.Image]:
    """The pictures for the ControlNets, fitted to the size if one is given."""
    fitted = [edit.Canvas.of(each, inputs.sides if inputs.size else each.size, fit=inputs.fit)
              for each in inputs.control]  # fmt: skip
    return [PIL.Image.fromarray(each.pixels) for each in fitted]


def _single(values: Sequence[Any]) -> Any:
    """The value if there is one, as pipelines want it, None without any, else the list."""
    return list(values) if len(values) > 1 else next(iter(values), None)


def _prompt_arguments(model: PipelineModel, pipe: Any, inputs: ImageInputs) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The prompts as text, or as embeddings where their weights or length need it and the model supports it."""
    if embeds.needed(pipe, (inputs.prompt, inputs.negative), inputs.clip_skip):
        return embeds.embeddings(model, pipe, inputs.prompt, inputs.negative, inputs.clip_skip)
    asked, negative = prompts.read(inputs.prompt), prompts.read(inputs.negative)
    notices = (*asked.notices, *negative.notices)
    if not (asked.plain and negative.plain):
        notices += ("weights and `BREAK` in the prompt are ignored: this model does not support them",)
    if negative.text and _ignores_negative(pipe, inputs):
        notices += ("the negative prompt has no effect: this model is distilled for guidance",)
    prompt = asked.text if "prompt" in parameters(pipe) else None
    if prompt is None:
        notices += ("the prompt has no effect: this model takes none",)
    return arguments(
        pipe, {"prompt": ("prompt", prompt), "negative": ("negative_prompt", negative.text or None)}
    ), notices


def _ignores_negative(pipe: Any, inputs: ImageInputs) -> bool:
    """Whether the pipeline's classifier-free guidance is off, as it is by default where guidance is an embedding."""
    is_guidance = guidance_argument(pipe) == "true_cfg_scale" and inputs.guidance is not None
    scale = inputs.guidance if is_guidance else parameters(pipe).get("true_cfg_scale")
    return isinstance(scale, int | float) and scale <= 1


def _canvas_has_mask(inputs: ImageInputs) -> bool:
    return inputs.image is not None and bool(inputs.mask or inputs.box or inputs.extend)


def _picture_arguments(pipe: Any, inputs: ImageInputs) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Width, height, picture and mask."""
    takes = parameters(pipe)
    if inputs.image is None:
        width, height = inputs.canvas
        return {"width": width, "height": height} if inputs.size else {}, ()
    canvas = _canvas(pipe, inputs)
    height, width = canvas.pixels.shape[:2]
    made: dict[str, Any] = {"image": PIL.Image.fromarray(canvas.pixels)}
    if canvas.mask is not None:
        made["mask_image"] = PIL.Image.fromarray((canvas.mask * 255).round().astype("uint8"))
    if "width" in takes and (inputs.size or canvas.mask is not None or "strength" in takes):
        made |= {"width": width, "height": height}
    return made, canvas.notices


def _canvas(pipe: Any, inputs: ImageInputs) -> edit.Canvas:
    """The picture fitted to the size, or to its own rounded to what the model draws."""
    assert inputs.image is not None
    sides = inputs.sides
    if not inputs.size:
        multiple = math.lcm(int(getattr(pipe, "vae_scale_factor", 8)) * 2, 8)
        sides = tuple(max(multiple, side // multiple * multiple) for side in inputs.image.size)  # type: ignore[assignment]
    return edit.Canvas.of(inputs.image, sides, fit=inputs.fit, mask=inputs.mask, box=inputs.box, extend=inputs.extend)


def _picture(model: PipelineModel, state: GuestState, result: Any) -> studio.Image:
    """The picture, with the original pixels where the mask is black."""
    made = as_media(studio.Image, model.pipe, result)
    assert isinstance(made, studio.Image)
    inputs: ImageInputs = state.inputs
    if not _canvas_has_mask(inputs):
        return made
    canvas = _canvas(model.pipe, inputs)
    pixels = np.asarray(made.samples(), np.uint8)
    if canvas.mask is None or pixels.shape != canvas.pixels.shape:
        return made
    return studio.Image.from_array(edit.composite(pixels, canvas.pixels, canvas.mask))
