"""The declared nodes: their inputs and outputs, as ``/object_info`` has them, and the functions that compile them.

Try it: ``curl http://127.0.0.1:7860/object_info/KSampler``
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from studio.server.comfy import pixels, sampling
from studio.server.comfy.graph import NodeProblem
from studio.server.comfy.samplers import SAMPLERS, SCHEDULERS
from studio.server.comfy.scene import Lists, NodeFault, Scene, known, wrong
from studio.server.comfy.values import Clip, Conditioning, Control, ControlNet, Denoiser, Latent, Pixels, Saved, Vae

MODELS, ADDITIONS = "models", "additions"
"""Lists of names that depend on what is downloaded."""
WIDGETS = ("INT", "FLOAT", "STRING", "COMBO")
"""Kinds of inputs that are values; others are links."""
MOST_SEED = (1 << 64) - 1


@dataclass(frozen=True)
class Slot:
    """An input: its `kind` is one of `WIDGETS`, or the type of a link.

    The choices of a COMBO are `choices` and the names in the lists `listed`; without any, it is a text.
    """

    name: str
    kind: str
    default: Any = None
    minimum: float | None = None
    maximum: float | None = None
    choices: Sequence[str] = ()
    listed: Sequence[str] = ()
    required: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)

    def names(self, lists: Lists) -> Mapping[str, str]:
        """The choices of a COMBO, and what they stand for."""
        found = {name: name for name in self.choices}
        for each in self.listed:
            found |= lists[each]
        return found

    def described(self, lists: Lists) -> list[Any]:
        """As ``/object_info`` has it: a list of names in the old form."""
        limits = {"default": self.default, "min": self.minimum, "max": self.maximum}
        options = {name: value for name, value in limits.items() if value is not None} | dict(self.options)
        return [[*self.names(lists)] if self.kind == "COMBO" else self.kind, options]

    def read(self, value: Any, lists: Lists) -> Any:
        """The value of a widget. Raises NodeFault."""
        if self.kind in ("INT", "FLOAT"):
            return self._number(value)
        if not isinstance(value, str):
            raise _fault("invalid_input_type", "Failed to convert an input value to a STRING value", self.name, value)
        if self.kind == "STRING" or not (self.choices or self.listed):
            return value
        names = self.names(lists)
        if value not in names:
            listed = ", ".join([*names][:40]) or "nothing; see `studio models pull`"
            raise _fault("value_not_in_list", "Value not in list", self.name, value, f"not in: {listed}")
        return names[value]

    def _number(self, value: Any) -> int | float:
        convert: Callable[[Any], int | float] = int if self.kind == "INT" else float
        try:
            number = convert(value)
            if number != number or (isinstance(value, float) and self.kind == "INT" and not value.is_integer()):
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            message = f"Failed to convert an input value to a {self.kind} value"
            raise _fault("invalid_input_type", message, self.name, value) from None
        if self.minimum is not None and number < self.minimum:
            message = f"Value {number} smaller than min of {self.minimum}"
            raise _fault("value_smaller_than_min", message, self.name, value)
        if self.maximum is not None and number > self.maximum:
            message = f"Value {number} bigger than max of {self.maximum}"
            raise _fault("value_bigger_than_max", message, self.name, value)
        return number


def _fault(kind: str, message: str, name: str, value: Any, more: str = "") -> NodeFault:
    details = f"{name}: {str(value)[:100]!r}{f' {more}' if more else ''}"
    return NodeFault(NodeProblem(kind, message, details, name))


Build = Callable[[Scene, Mapping[str, Any]], tuple[Any, ...]]


@dataclass(frozen=True)
class NodeType:
    """A class of nodes. `build` returns the values of its outputs; `ignored` are inputs that do not matter."""

    name: str
    category: str
    inputs: Sequence[Slot]
    outputs: Sequence[str]
    build: Build
    names: Sequence[str] = ()
    ignored: Sequence[str] = ()

    @property
    def saves(self) -> bool:
        """Whether it is an output node."""
        return not self.outputs

    def described(self, lists: Lists) -> dict[str, Any]:
        """As ``/object_info`` has it."""
        groups = {"required": True, "optional": False}
        ports = {group: {port.name: port.described(lists) for port in self.inputs if port.required is wanted}
                 for group, wanted in groups.items()}  # fmt: skip
        return {
            "input": {name: found for name, found in ports.items() if found or name == "required"},
            "input_order": {name: [*found] for name, found in ports.items() if found or name == "required"},
            "output": [*self.outputs],
            "output_is_list": [False] * len(self.outputs),
            "output_name": [*(self.names or self.outputs)],
            "name": self.name,
            "display_name": self.name,
            "description": (self.build.__doc__ or "").split("\n")[0],
            "python_module": "nodes",
            "category": self.category,
            "output_node": self.saves,
        }


def _checkpoint(scene: Scene, given: Mapping[str, Any]) -> tuple[Any, ...]:
    """Use a model with its own text encoders and VAE."""
    choice = scene.choice(given["ckpt_name"])
    return Denoiser(choice), Clip(choice), Vae(choice)


def _unet(scene: Scene, given: Mapping[str, Any]) -> tuple[Any, ...]:
    """Use the denoiser of a model."""
    return (Denoiser(scene.choice(given["unet_name"])),)


def _clip(scene: Scene, given: Mapping[str, Any]) -> tuple[Any, ...]:
    """Use the text encoders of a model; they must be those of the model that samples."""
    names = [given[name] for name in ("clip_name", "clip_name1", "clip_name2") if name in given]
    if len(set(names)) > 1:
        details = "name the same model twice: its text encoders are loaded together"
        raise wrong("The text encoders are of two models", details, "clip_name2")
    return (Clip(scene.choice(names[0])),)


def _vae(scene: Scene, given: Mapping[str, Any]) -> tuple[Any, ...]:
    """Use the VAE of a model, or one that was downloaded for itself."""
    name = given["vae_name"]
    return (Vae(scene.choice(name)) if name in scene.lists[MODELS].values() else Vae(source=name),)


def _clip_skip(scene: Scene, given: Mapping[str, Any]) -> tuple[Any, ...]:
    """Skip layers at the end of the text encoders."""
    clip: Clip = given["clip"]
    return (Clip(clip.choice, clip.loras, -1 - given["stop_at_clip_layer"]),)


def _lora(scene: Scene, given: Mapping[str, Any]) -> tuple[Any, ...]:
    """Add a LoRA to the denoiser and the text encoders."""
    model: Denoiser = given["model"]
    if given["strength_model"]:
        model = Denoiser(model.choice, (*model.loras, (given["lora_name"], given["strength_model"])))
    if "clip" not in given:
        return (model,)
    clip: Clip = given["clip"]
    if given["strength_clip"]:
        clip = Clip(clip.choice, (*clip.loras, (given["lora_name"], given["strength_clip"])), clip.skip)
    return model, clip


def _encode_text(scene: Scene, given: Mapping[str, Any]) -> tuple[Any, ...]:
    """A prompt."""
    return (Conditioning(given["text"], given["clip"]),)


def _control_net(scene: Scene, given: Mapping[str, Any]) -> tuple[Any, ...]:
    """Use a downloaded ControlNet."""
    return (ControlNet(given["control_net_name"]),)


def _control(scene: Scene, given: Mapping[str, Any]) -> tuple[Any, ...]:
    """Let a ControlNet guide a prompt and, as in ComfyUI, the other prompt, too."""
    return (_controlled(given["conditioning"], given, both=True),)


def _control_both(scene: Scene, given: Mapping[str, Any]) -> tuple[Any, ...]:
    """Let a ControlNet guide both prompts, from the first step to the last."""
    if (given["start_percent"], given["end_percent"]) != (0, 1):
        details = "start_percent must be 0 and end_percent 1"
        raise wrong("A ControlNet works in all steps here", details, "start_percent")
    return tuple(_controlled(given[name], given, both=False) for name in ("positive", "negative"))


def _controlled(prompt: Conditioning, given: Mapping[str, Any], *, both: bool) -> Conditioning:
    if not given["strength"]:
        return prompt
    control = Control(given["control_net"].source, known(given["image"]), given["strength"], both)
    return Conditioning(prompt.text, prompt.clip, (*prompt.controls, control))


def _empty(scene: Scene, given: Mapping[str, Any]) -> tuple[Any, ...]:
    """An empty latent: pictures are generated from noise."""
    return (Latent((given["width"], given["height"]), given["batch_size"], node=scene.node),)


def _save(scene: Scene, given: Mapping[str, Any]) -> tuple[Any, ...]:
    """Report pictures in the history."""
    _saved(scene, given["images"], "output")
    return ()


def _preview(scene: Scene, given: Mapping[str, Any]) -> tuple[Any, ...]:
    """Report pictures in the history, as temporary ones."""
    _saved(scene, given["images"], "temp")
    return ()


def _send(scene: Scene, given: Mapping[str, Any]) -> tuple[Any, ...]:
    """Send pictures as binary messages of the websocket, as previews are."""
    _saved(scene, given["images"], "")
    return ()


def _saved(scene: Scene, picture: Pixels, folder: str) -> None:
    if picture.scaled:
        message = "A generated picture can be scaled only for VAEEncode"
        raise wrong(message, "ImageScale leads to an output node", "images")
    scene.saved.append(Saved(scene.node, picture, folder))


def _size(name: str, default: int = 512) -> Slot:
    return Slot(name, "INT", default, 16, 8192, options={"step": 8})


def _strength(name: str) -> Slot:
    return Slot(name, "FLOAT", 1.0, -10.0, 10.0, options={"step": 0.01})


def _named(name: str, *listed: str) -> Slot:
    return Slot(name, "COMBO", listed=listed)


_TEXT = {"multiline": True, "dynamicPrompts": True}
_UNIT = {"step": 0.001}
_LATENT_SIZE = (_size("width"), _size("height"), Slot("batch_size", "INT", 1, 1, 4096))
_SAMPLED = (Slot("steps", "INT", 20, 1, 10_000), Slot("cfg", "FLOAT", 8.0, 0.0, 100.0, options={"step": 0.1}),
            Slot("sampler_name", "COMBO", choices=[*SAMPLERS]), Slot("scheduler", "COMBO", choices=[*SCHEDULERS]),
            Slot("positive", "CONDITIONING"), Slot("negative", "CONDITIONING"),
            Slot("latent_image", "LATENT"))  # fmt: skip
_IMAGE_FILE = Slot("image", "COMBO", options={"image_upload": True})
_PIXELS = (Slot("pixels", "IMAGE"), Slot("vae", "VAE"))
_UPLOADS = ("upload", "choose file to upload")
_KINDS = ("stable_diffusion", "sd3", "flux", "hunyuan_video", "wan", "qwen_image", "lumina2", "stable_audio")

_ALL = (
    NodeType("CheckpointLoaderSimple", "loaders", [_named("ckpt_name", MODELS)], ("MODEL", "CLIP", "VAE"), _checkpoint),
    NodeType("UNETLoader", "advanced/loaders", [_named("unet_name", MODELS),
             Slot("weight_dtype", "COMBO", choices=["default"])], ("MODEL",), _unet),
    NodeType("CLIPLoader", "advanced/loaders", [_named("clip_name", MODELS), Slot("type", "COMBO", choices=_KINDS),
             Slot("device", "COMBO", choices=["default"], required=False)], ("CLIP",), _clip),
    NodeType("DualCLIPLoader", "advanced/loaders", [_named("clip_name1", MODELS), _named("clip_name2", MODELS),
             Slot("type", "COMBO", choices=["sdxl", *_KINDS]),
             Slot("device", "COMBO", choices=["default"], required=False)], ("CLIP",), _clip),
    NodeType("VAELoader", "loaders", [_named("vae_name", MODELS, ADDITIONS)], ("VAE",), _vae),
    NodeType("CLIPSetLastLayer", "conditioning", [Slot("clip", "CLIP"), Slot("stop_at_clip_layer", "INT", -1, -24, -1)],
             ("CLIP",), _clip_skip),
    NodeType("LoraLoader", "loaders", [Slot("model", "MODEL"), Slot("clip", "CLIP"), _named("lora_name", ADDITIONS),
             _strength("strength_model"), _strength("strength_clip")], ("MODEL", "CLIP"), _lora),
    NodeType("LoraLoaderModelOnly", "loaders", [Slot("model", "MODEL"), _named("lora_name", ADDITIONS),
             _strength("strength_model")], ("MODEL",), _lora),
    NodeType("CLIPTextEncode", "conditioning", [Slot("text", "STRING", options=_TEXT), Slot("clip", "CLIP")],
             ("CONDITIONING",), _encode_text),
    NodeType("ControlNetLoader", "loaders", [_named("control_net_name", ADDITIONS)], ("CONTROL_NET",), _control_net),
    NodeType("ControlNetApply", "conditioning/controlnet", [
             Slot("conditioning", "CONDITIONING"), Slot("control_net", "CONTROL_NET"), Slot("image", "IMAGE"),
             Slot("strength", "FLOAT", 1.0, 0.0, 10.0, options={"step": 0.01})], ("CONDITIONING",), _control),
    NodeType("ControlNetApplyAdvanced", "conditioning/controlnet", [
             Slot("positive", "CONDITIONING"), Slot("negative", "CONDITIONING"), Slot("control_net", "CONTROL_NET"),
             Slot("image", "IMAGE"), Slot("strength", "FLOAT", 1.0, 0.0, 10.0, options={"step": 0.01}),
             Slot("start_percent", "FLOAT", 0.0, 0.0, 1.0, options=_UNIT),
             Slot("end_percent", "FLOAT", 1.0, 0.0, 1.0, options=_UNIT), Slot("vae", "VAE", required=False)],
             ("CONDITIONING", "CONDITIONING"), _control_both, ("positive", "negative")),
    NodeType("EmptyLatentImage", "latent", _LATENT_SIZE, ("LATENT",), _empty),
    NodeType("EmptySD3LatentImage", "latent/sd3", _LATENT_SIZE, ("LATENT",), _empty),
    NodeType("KSampler", "sampling", [Slot("model", "MODEL"), Slot("seed", "INT", 0, 0, MOST_SEED), *_SAMPLED,
             Slot("denoise", "FLOAT", 1.0, 0.0, 1.0, options={"step": 0.01})], ("LATENT",), sampling.sample,
             ignored=("control_after_generate",)),
    NodeType("KSamplerAdvanced", "sampling", [Slot("model", "MODEL"),
             Slot("add_noise", "COMBO", choices=["enable", "disable"]), Slot("noise_seed", "INT", 0, 0, MOST_SEED),
             *_SAMPLED, Slot("start_at_step", "INT", 0, 0, 10_000), Slot("end_at_step", "INT", 10_000, 0, 10_000),
             Slot("return_with_leftover_noise", "COMBO", choices=["disable", "enable"])], ("LATENT",),
             sampling.sample_advanced, ignored=("control_after_generate",)),
    NodeType("VAEDecode", "latent", [Slot("samples", "LATENT"), Slot("vae", "VAE")], ("IMAGE",), sampling.decode),
    NodeType("VAEEncode", "latent", _PIXELS, ("LATENT",), sampling.encode),
    NodeType("VAEEncodeForInpaint", "latent/inpaint", [*_PIXELS, Slot("mask", "MASK"),
             Slot("grow_mask_by", "INT", 6, 0, 64)], ("LATENT",), sampling.encode_for_inpainting),
    NodeType("SetLatentNoiseMask", "latent/inpaint", [Slot("samples", "LATENT"), Slot("mask", "MASK")], ("LATENT",),
             sampling.set_mask),
    NodeType("LoadImage", "image", [_IMAGE_FILE], ("IMAGE", "MASK"), pixels.load, ignored=_UPLOADS),
    NodeType("LoadImageMask", "mask", [_IMAGE_FILE,
             Slot("channel", "COMBO", choices=["alpha", "red", "green", "blue"])], ("MASK",), pixels.load_mask,
             ignored=_UPLOADS),
    NodeType("ImageScale", "image/upscaling", [Slot("image", "IMAGE"),
             Slot("upscale_method", "COMBO", choices=[*pixels.METHODS]), Slot("width", "INT", 512, 0, 8192),
             Slot("height", "INT", 512, 0, 8192), Slot("crop", "COMBO", choices=["disabled", "center"])],
             ("IMAGE",), pixels.scale),
    NodeType("SaveImage", "image", [Slot("images", "IMAGE"), Slot("filename_prefix", "STRING", "ComfyUI")], (), _save),
    NodeType("PreviewImage", "image", [Slot("images", "IMAGE")], (), _preview),
    NodeType("SaveImageWebsocket", "api/image", [Slot("images", "IMAGE")], (), _send),
)  # fmt: skip
NODES = {each.name: each for each in _ALL}
"""The known classes of nodes, by name."""
