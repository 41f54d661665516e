"""What is loaded with a pipeline besides its folder: LoRA, textual inversion, another VAE, ControlNets, IP-Adapters.

All of it is checked against the model, and what does not fit is refused.

Try it: ``load(folder, "cpu", "float32", Additions(loras=((Path("style.safetensors"), 0.8),)))``
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.diffusion import layout
from studio.errors import WeightsError
from studio.loaders import components as kinds
from studio.loaders import diffusers as loaders
from studio.loaders import read_config
from studio.loaders.adapters import load_embeddings, load_loras, lora_file
from studio.loaders.ip_adapters import adapter_file, add_feature_extractor, image_encoder, load_ip_adapters
from studio.spec import ModelRef
from studio.weights.checksums import sha256_once

_SINGLE = ("vae", "base")
KINDS = ("lora", "embedding", "controlnet", "ip_adapter", *_SINGLE)
Found = dict[str, tuple[type, Path]]
"""Name -> class and folder of a pipeline's components."""


@dataclass(frozen=True)
class Additions:
    """What is loaded with a model.

    Attributes:
        loras: files or folders, each with its weight, about -2 to 2.
        embeddings: files of textual inversions; the word of each is its file's name.
        vae: a folder with a VAE, a model's folder with one, or a file with the weights of one, in place of the model's.
        controlnets: folders with ControlNets.
        ip_adapters: files of IP-Adapters, each with its scale.
        base: for a model in a single file, the folder with what the file lacks.
    """

    loras: tuple[tuple[Path, float], ...] = ()
    embeddings: tuple[Path, ...] = ()
    vae: Path | None = None
    controlnets: tuple[Path, ...] = ()
    ip_adapters: tuple[tuple[Path, float], ...] = ()
    base: Path | None = None

    @classmethod
    def of(cls, ref: ModelRef) -> Additions:
        """Those of a located ModelRef. Raises WeightsError for two of what there is one of, or an unknown kind."""
        paths = {kind: [each for each in ref.additions if each.kind == kind] for kind in KINDS}
        for each in ref.additions:
            if each.kind not in KINDS or (each.kind in _SINGLE and len(paths[each.kind]) > 1):
                raise WeightsError(each.path, f"`{each.kind:.40}` cannot be added to the model, or not twice",
                                   hint=f"known: {', '.join(KINDS)}")  # fmt: skip
        one = {kind: paths[kind][0].path if paths[kind] else None for kind in _SINGLE}
        loras = tuple((each.path, each.weight) for each in paths["lora"])
        if weighted := [each for each in paths["controlnet"] if each.weight != 1]:
            message = f"the ControlNet `{weighted[0].path}` has the weight {weighted[0].weight:g}, which only LoRA have"
            raise WeightsError(weighted[0].path, message, hint="give `control_scale`")
        embeddings, nets = (tuple(each.path for each in paths[kind]) for kind in ("embedding", "controlnet"))
        adapters = tuple((each.path, each.weight) for each in paths["ip_adapter"])
        return cls(loras, embeddings, one["vae"], nets, adapters, one["base"])

    @property
    def files(self) -> list[Path]:
        """The files on which the output depends. Raises WeightsError."""
        folders = [_vae_folder(self.vae)] if self.vae and not self.vae_file else []
        found = [lora_file(path) for path, _ in self.loras] + list(self.embeddings)
        found += [self.vae_file] if self.vae_file else []
        found += [adapter_file(path) for path, _ in self.ip_adapters]
        return found + [file for folder in (*folders, *self.controlnets)
                        for file in (*layout.texts_of(folder), *layout.weights_of(folder))]  # fmt: skip

    @property
    def vae_file(self) -> Path | None:
        """The file that has the weights of the VAE, if it is not a folder."""
        return self.vae if self.vae is not None and self.vae.is_file() else None

    def replaced(self, kind: type, found: Found) -> tuple[type, Found]:
        """The class of the pipeline and its components with the VAE and ControlNets, whose names are numbered; see
        `joined`. Raises WeightsError.
        """
        own, found = kind, dict(found)
        if self.vae is not None and "vae" not in found:
            raise WeightsError(self.vae, f"a `{kind.__name__}` has no VAE to replace", hint="leave out `vae`")
        if self.vae is not None and not self.vae_file:
            found["vae"] = _other_vae(self.vae, found)
        for i, folder in enumerate(self.controlnets):
            kind, found[f"{_NUMBERED}{i}"] = _with_controlnet(folder, own, found, len(self.controlnets))
        if self.ip_adapters and "image_encoder" not in found:
            folder = image_encoder(self.ip_adapters[0][0])
            named = ["transformers", "CLIPVisionModelWithProjection"]
            found["image_encoder"] = kinds.component_class(folder, "image_encoder", named), folder
        return kind, found

    def changed(self, kind: type, found: Found, files: Callable[[], Sequence[Path]]) -> Changed:
        """What LoRA and textual inversion change of a model with these files."""
        names = set(getattr(kind, "_lora_loadable_modules", ())) if self.loras else set[str]()
        names |= {"text_encoder", "text_encoder_2"} if self.embeddings else set()
        names |= {"unet"} if self.ip_adapters else set()
        if not names:
            return Changed()
        hashes = tuple(map(sha256_once, files()))
        weights = tuple(weight for _, weight in (*self.loras, *self.ip_adapters))
        return Changed(frozenset(names & found.keys()), hashes, weights)


NOTHING = Additions()
_NUMBERED = "controlnet_"


def joined(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The loaded components with the numbered ControlNets as one: itself, or a list of several."""
    nets = [each for name, each in parts.items() if name.startswith(_NUMBERED)]
    others = {name: each for name, each in parts.items() if not name.startswith(_NUMBERED)}
    return others | ({"controlnet": nets if len(nets) > 1 else nets[0]} if nets else {})


def _vae_folder(vae: Path) -> Path:
    return vae / "vae" if (vae / layout.INDEX).exists() else vae


def _other_vae(vae: Path, found: Found) -> tuple[type, Path]:
    """The class and folder of a VAE in place of a model's. Raises WeightsError if it has other latents."""
    kind, own = found["vae"]
    place = _vae_folder(vae)
    if not (place / "config.json").exists():
        raise WeightsError(vae, f"`{vae}` is not a VAE in diffusers' layout: it has no `config.json`",
                           hint="give a folder that `save_pretrained` of diffusers wrote")  # fmt: skip
    keys = ("latent_channels", "z_dim", "block_out_channels")
    mine, theirs = (_shape(loaders.config(kind, each / "config.json"), keys) for each in (own, place))
    name = str(read_config(place / "config.json").get("_class_name"))
    different = [key for key in ("latent_channels", "z_dim") if mine.get(key) != theirs.get(key)]
    if name != kind.__name__ or different or _depth(mine) != _depth(theirs):
        other = f"a `{name:.60}` with {theirs}"
        raise WeightsError(place, f"the VAE `{place}` is {other}; this model needs a `{kind.__name__}` with {mine}",
                           hint="use a VAE of the same family")  # fmt: skip
    return kind, place


def _depth(config: Mapping[str, Any]) -> int:
    return len(config.get("block_out_channels") or ())


def _shape(config: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: config[key] for key in keys if key in config}


_CONTROL_KEYS = ("cross_attention_dim", "block_out_channels", "addition_embed_type", "joint_attention_dim",
                 "pooled_projection_dim", "caption_projection_dim")  # fmt: skip


def _with_controlnet(folder: Path, kind: type, found: Found, count: int) -> tuple[type, tuple[type, Path]]:
    """The pipeline with a ControlNet, of `count`, and its class and folder. Raises WeightsError if it does not fit."""
    config = folder / "config.json"
    if not config.exists():
        raise WeightsError(folder, f"`{folder}` is not a ControlNet in diffusers' layout: it has no `config.json`",
                           hint="give a folder that `save_pretrained` of diffusers wrote")  # fmt: skip
    name = str(read_config(config).get("_class_name"))
    net = kinds.component_class(config, "controlnet", ["diffusers", name])
    own = "ControlNet" in kind.__name__
    made = kind if own else kinds.find_pipeline(kind.__name__.replace("Pipeline", "ControlNetPipeline"))
    takes = "" if made is None else str(inspect.signature(made).parameters.get("controlnet"))
    if made is None or not re.search(rf"\b{net.__name__}\b", takes):
        message = f"the ControlNet `{folder}` is a `{name:.60}`, which a `{kind.__name__}` does not take"
        raise WeightsError(folder, message, hint="use a ControlNet of the same family")
    if count > 1 and not re.search(r"\b(list|List|tuple|Tuple)\b", takes):
        message = f"{count} ControlNets are given; a `{made.__name__}` takes one"
        raise WeightsError(folder, message, hint="give one `controlnet`")
    denoiser, place = found["unet" if "unet" in found else "transformer"]
    pairs = ((net, config), (denoiser, place / "config.json"))
    one, two = (_shape(loaders.config(each, where), _CONTROL_KEYS) for each, where in pairs)
    unlike = [key for key in one.keys() & two.keys() if one[key] != two[key]]
    if unlike:
        key = min(unlike)
        message = f"the ControlNet `{folder}` does not fit: its `{key}` is {one[key]}, the model's is {two[key]}"
        raise WeightsError(folder, message, hint="use a ControlNet that was trained for this model")
    return made, (net, folder)


@dataclass(frozen=True)
class Changed:
    """The components that LoRA and textual inversion change. As a `Pack` it keeps them from being shared with others.

    Attributes:
        names: of the components.
        hashes: of all files of the model and of what is added.
        weights: of the LoRAs and IP-Adapters.
    """

    names: frozenset[str] = frozenset()
    hashes: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()

    def __call__(self, module: Any) -> None:
        """Nothing yet: `apply` needs the whole pipeline."""

    def apply(self, pipe: Any, additions: Additions) -> None:
        """Add LoRAs, IP-Adapters and textual inversions to a pipeline. Modules that are shared have theirs already.

        Raises WeightsError for what does not fit.
        """
        modules = [getattr(pipe, name) for name in sorted(self.names)]
        done = any(hasattr(module, "_studio_changed") for module in modules)
        if additions.embeddings:
            load_embeddings(pipe, additions.embeddings)
        if additions.ip_adapters:
            add_feature_extractor(pipe)
        if additions.ip_adapters and not done:
            load_ip_adapters(pipe, [(adapter_file(path), scale) for path, scale in additions.ip_adapters])
        if additions.loras and not done:
            load_loras(pipe, additions.loras)
        for module in modules:
            module._studio_changed = self
