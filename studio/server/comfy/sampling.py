"""Nodes around sampling: they become requests of a generator, as far as its result is that of ComfyUI's algorithm.

ComfyUI draws a latent's noise on the CPU by ``torch.manual_seed(seed)``, of which torch uses the low 32 bits, and so
does Studio for a seed below 2**32. A picture that is not the first of a batch has other noise: that of the next seed.

Try it: ``pytest tests/studio/server/comfy/test_compile.py``
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

from studio.server.catalogue import flags_of
from studio.server.comfy import pixels
from studio.server.comfy.samplers import fitting, sampler_of
from studio.server.comfy.scene import Scene, wrong
from studio.server.comfy.values import Clip, Conditioning, Control, Denoiser, Latent, Mask, Pixels, Render, Vae

_SEEDS = 1 << 32


def encode(scene: Scene, given: Mapping[str, Any]) -> tuple[Any, ...]:
    """A picture as the beginning of another."""
    return (_encoded(scene, given["pixels"], given["vae"]),)


def _encoded(scene: Scene, picture: Pixels, vae: Vae) -> Latent:
    if picture.count > 1:
        raise wrong("Only one picture can be encoded", f"there are {picture.count}; set `batch_size` to 1", "pixels")
    if picture.image is not None:
        image = pixels.in_latents(picture.image)
        picture = Pixels(image.size, image)
    return Latent(picture.size, 1, picture, vae=vae, node=scene.node)


def encode_for_inpainting(scene: Scene, given: Mapping[str, Any]) -> tuple[Any, ...]:
    """A picture in which the mask is repainted."""
    latent = _encoded(scene, given["pixels"], given["vae"])
    if latent.picture is None or latent.picture.image is None:
        raise wrong("Only a loaded picture can be inpainted", "it is one that the graph generates", "pixels")
    mask: Mask = given["mask"]
    fitted = pixels.in_latents(pixels.fitted(mask.image, given["pixels"].size))
    blank = pixels.blanked(latent.picture.image, fitted)
    return (replace(latent, picture=Pixels(latent.size, blank), mask=pixels.grown(fitted, given["grow_mask_by"])),)


def set_mask(scene: Scene, given: Mapping[str, Any]) -> tuple[Any, ...]:
    """Repaint only where the mask is white."""
    latent: Latent = given["samples"]
    if latent.picture is None or latent.picture.image is None:
        raise wrong("A mask needs an encoded picture", "connect VAEEncode of a loaded picture", "samples")
    return (replace(latent, mask=pixels.fitted(given["mask"].image, latent.size)),)


def decode(scene: Scene, given: Mapping[str, Any]) -> tuple[Any, ...]:
    """The pictures of a sampler's latent."""
    latent: Latent = given["samples"]
    render, vae = latent.render, given["vae"]
    if render is None:
        raise wrong("Only the latent of a sampler can be decoded", "connect a KSampler", "samples")
    if render.decoder not in (None, vae) or render.encoder not in (None, vae):
        raise wrong("A sampler's pictures have one VAE here", "connect the same VAE to all its nodes", "vae")
    if vae.choice is not None and vae.choice != render.choice:
        if not vae.choice.model:
            raise wrong("The VAE is not that of the model", f"`{vae.choice.name}` is for its own model only", "vae")
        vae_source = vae.choice.model
    else:
        vae_source = vae.source
    if vae_source:
        _give(render, "vae", vae_source, (scene.node, "vae"))
    render.decoder = vae
    return (Pixels(render.size, None, render),)


def sample(scene: Scene, given: Mapping[str, Any]) -> tuple[Any, ...]:
    """Generate pictures from noise, or from an encoded picture."""
    steps, denoise, latent = given["steps"], given["denoise"], given["latent_image"]
    if not denoise:
        raise wrong("Value 0 smaller than min", "`denoise` must be above 0", "denoise")
    if latent.picture is None and denoise < 1:
        raise wrong("An empty latent needs a `denoise` of 1", f"it is {denoise}; connect VAEEncode", "denoise")
    # ComfyUI runs `steps` of the int(steps / denoise) steps that a whole schedule would have.
    whole = steps if denoise > 0.9999 else int(steps / denoise)
    return (_sampled(scene, given, given["seed"], whole, steps, "denoise"),)


def sample_advanced(scene: Scene, given: Mapping[str, Any]) -> tuple[Any, ...]:
    """Generate pictures as KSampler does, from a step to the end."""
    steps, start, latent = given["steps"], given["start_at_step"], given["latent_image"]
    if given["add_noise"] != "enable" or given["return_with_leftover_noise"] != "disable":
        raise wrong("Latents with noise cannot be passed on", "`add_noise` must be `enable` and "
                    "`return_with_leftover_noise` `disable`", "add_noise")  # fmt: skip
    if given["end_at_step"] < steps or start >= steps:
        details = f"`start_at_step` is {start}, `end_at_step` {given['end_at_step']}, `steps` {steps}"
        raise wrong("The steps must run to the end", details, "end_at_step")
    if latent.picture is None and start:
        raise wrong("An empty latent starts at step 0", f"`start_at_step` is {start}", "start_at_step")
    return (_sampled(scene, given, given["noise_seed"], steps, steps - start, "start_at_step"),)


def _sampled(scene: Scene, given: Mapping[str, Any], seed: int, whole: int, steps: int, begin: str) -> Latent:
    """The latent of a new render, which runs `steps` of `whole` steps."""
    model, latent = given["model"], given["latent_image"]
    positive, negative = given["positive"], given["negative"]
    if latent.render is not None:
        raise wrong(
            "The latent of a sampler cannot be sampled again", "connect VAEDecode and VAEEncode", "latent_image"
        )
    if latent.count > scene.most:
        raise wrong("Too many pictures", f"`batch_size` is {latent.count}; the limit is {scene.most}", "latent_image")
    earlier = latent.picture.render if latent.picture is not None else None
    values = {"seed": seed % _SEEDS}
    render = Render(scene.node, model.choice, values, latent.count, latent.size, earlier, latent.vae)
    here = scene.node
    _give(render, "prompt", positive.text, (here, "positive"))
    _give(render, "negative", negative.text, (here, "negative"))
    _give(render, "steps", whole, (here, "steps"))
    _give(render, "guidance", given["cfg"], (here, "cfg"))
    _give(
        render,
        "size",
        f"{latent.size[0]}x{latent.size[1]}",
        (latent.node, "width" if latent.picture is None else "pixels"),
    )
    if latent.picture is not None:
        _give(render, "strength", strength(whole, steps), (here, begin))
        _give(render, "image", latent.picture.image, (latent.node, "pixels"))
    if latent.mask is not None:
        _give(render, "mask", latent.mask, (latent.node, "mask"))
    _give_texts(scene, render, model, positive, negative, given["cfg"])
    _give_sampler(render, given, here)
    scene.renders.append(render)
    return Latent(latent.size, latent.count, render=render, node=here)


def strength(whole: int, steps: int) -> float:
    """The strength with which a generator runs `steps` of `whole` steps: int(whole * strength) of them."""
    found = steps / whole
    return found if int(whole * found) == steps else math.nextafter(found, 2.0)


def _give(render: Render, name: str, value: Any, origin: tuple[str, str]) -> None:
    """Set an input of the generator. Raises NodeFault if it does not have it."""
    if value in ("", None) and name != "prompt" and name != "image":
        return
    if not render.choice.takes(name):
        raise wrong(f"The model has no input `{name}`", f"`{render.choice.name}`", origin[1])
    render.origins[name] = origin
    if value is not None:
        render.values[name] = value


def _give_texts(
    scene: Scene, render: Render, model: Denoiser, positive: Conditioning, negative: Conditioning, cfg: float
) -> None:
    """Set what belongs to the text encoders, which must be those of the model."""
    clip: Clip = positive.clip
    if clip.choice != model.choice:
        message = "The text encoders are not those of the model"
        raise wrong(message, f"`{clip.choice.name}` and `{model.choice.name}`; load both of one", "positive")
    controls = positive.controls
    same = negative.controls == controls or (not negative.controls and all(each.both for each in controls))
    if negative.clip != clip or not same:
        raise wrong("The prompts must have the same text encoders and ControlNets", "connect the same nodes to both",
                    "negative")  # fmt: skip
    rest = list(clip.loras)
    for each in model.loras:
        if rest and rest[0] == each:
            rest.pop(0)
        elif scene.changes_text(each[0]):
            details = f"`{each[0]}`; use LoraLoader with equal weights, and its CLIP"
            raise wrong("A LoRA of text encoders has one weight here", details, "model")
    if rest:
        raise wrong("A LoRA is not applied to the model", f"`{rest[0][0]}`; connect LoraLoader's MODEL, too", "model")
    here = render.node
    if model.loras:
        _give(render, "lora", [f"{name}:{Decimal(repr(weight)):f}" for name, weight in model.loras], (here, "model"))
    _give(render, "clip_skip", clip.skip or None, (here, "positive"))
    if controls:
        _give_controls(render, controls)


def _give_controls(render: Render, controls: Sequence[Control]) -> None:
    """Set the ControlNets with their pictures and weights. Raises NodeFault for several if one is taken."""
    columns: dict[str, list[Any]] = {
        "controlnet": [each.net for each in controls],
        "control": [each.image for each in controls],
        "control_scale": [each.strength for each in controls],
    }
    flags = flags_of(render.choice.generator)
    for name, values in columns.items():
        many = name in flags and flags[name].multiple
        if len(values) > 1 and not many:
            raise wrong("The model takes one ControlNet", f"there are {len(values)}", "positive")
        _give(render, name, values if many else values[0], (render.node, "positive"))


def _give_sampler(render: Render, given: Mapping[str, Any], here: str) -> None:
    """Set the sampler. Raises NodeFault, with those that fit the model, if it does not."""
    name = sampler_of(given["sampler_name"], given["scheduler"])
    samplers, schedulers = fitting(render.choice, {**render.choice.values})
    _give(render, "sampler", name, (here, "sampler_name"))
    if "sampler" in render.choice.generator.Inputs.problems({**render.choice.values, "sampler": name}):
        input = "sampler_name" if given["sampler_name"] not in samplers else "scheduler"
        details = f"samplers: {', '.join(samplers) or 'none'}; schedulers: {', '.join(schedulers) or 'none'}"
        raise wrong(f"`{given[input]}` does not fit the model `{render.choice.name}`", details, input)
