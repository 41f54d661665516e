"""open_clip's models and tokenizers from untrusted folders.

`open_clip_config.json` may name a timm network, a text tower of transformers, and a tokenizer with arguments. Each must
be known to the installed libraries by name; nothing is looked up on a hub.

Try it: ``towers(configuration(Path("folder")), Path("folder"))``
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

from studio.errors import WeightsError
from studio.loaders import allowed, check_size, offline, read_config, scratch
from studio.loaders import transformers as ours

CONFIG = "open_clip_config.json"
_MODEL = ("embed_dim", "vision_cfg", "text_cfg", "multimodal_cfg", "quick_gelu", "init_logit_scale", "init_logit_bias",
          "nonscalar_logit_scale", "cast_dtype", "output_dict", "custom_text")  # fmt: skip
_PICTURES = ("size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color")
_FAMILIES = {"bert": "BertConfig", "m2m_100": "M2M100Config", "mt5": "MT5Config", "roberta": "RobertaConfig",
             "xlm-roberta": "XLMRobertaConfig"}  # fmt: skip
"""The text towers of transformers that open_clip supports."""
_TOKENIZER = ("clean", "strip_sep_token", "language")
MOST_PICTURE = 1024  # pixels per side; known CLIP models use 224 to 512
_TIMM = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?")


def configuration(folder: Path) -> dict[str, Any]:
    """`open_clip_config.json` with known keys only: `model_cfg` and `preprocess_cfg`. Raises WeightsError."""
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    path = folder / CONFIG
    found = read_config(path)
    shape, pictures = found.get("model_cfg"), found.get("preprocess_cfg") or {}
    if not isinstance(shape, dict) or not isinstance(pictures, dict):
        raise _wrong(path, "it has no `model_cfg`")
    for name, kind in (("vision_cfg", CLIPVisionCfg), ("text_cfg", CLIPTextCfg)):
        known = [each.name for each in dataclasses.fields(kind)]
        if not isinstance(shape.get(name), dict):
            raise _wrong(path, f"it has no `{name}`")
        if unknown := sorted(set(shape[name]) - set(known)):
            raise _wrong(path, f"open_clip cannot build `{name}` with `{unknown[0]}`")
    if unknown := sorted(set(shape) - set(_MODEL)):
        raise _wrong(path, f"open_clip cannot build a model with `{unknown[0]}`")
    shape = allowed(path, shape, _MODEL)
    _check_vision(path, shape["vision_cfg"])
    for sides in (shape["vision_cfg"].get("image_size"), pictures.get("size")):
        _check_sides(path, sides)
    _check_text(path, shape["text_cfg"])
    return {"model_cfg": shape, "preprocess_cfg": allowed(path, pictures, _PICTURES)}


def build(shape: dict[str, Any], folder: Path) -> Callable[[], Any]:
    """A function that builds the model of a `model_cfg`, without weights. Raises WeightsError for an unknown text
    tower.

    `folder` has the `config.json` of a text tower of transformers.
    """
    import open_clip

    shape = deepcopy(shape)
    if shape["vision_cfg"].get("timm_model_name"):
        shape["vision_cfg"]["timm_model_pretrained"] = False
    tower = _text_tower(shape["text_cfg"], folder)
    custom = shape.pop("custom_text", False) or tower is not None
    kind: Any = open_clip.CLIP
    if custom:
        kind = open_clip.CoCa if "multimodal_cfg" in shape else open_clip.CustomTextCLIP

    def make() -> Any:
        with scratch() as copy, offline(folder):
            if tower is not None:
                (copy / "config.json").write_text(json.dumps(tower), "utf-8")
                shape["text_cfg"] |= {"hf_model_name": str(copy), "hf_model_pretrained": False}
            check_size(folder / CONFIG, lambda: kind(**shape))
            return kind(**shape)

    return make


def tokenizer(text: dict[str, Any], folder: Path) -> Any:
    """The tokenizer of a `text_cfg`: open_clip's own, or transformers' with the folder's files. Raises WeightsError."""
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    path, length = folder / CONFIG, text.get("context_length", 77)
    given = text.get("tokenizer_kwargs") or {}
    if unknown := sorted(set(given) - set(_TOKENIZER)):
        raise _wrong(path, f"`tokenizer_kwargs` may not have `{unknown[0]}`")
    given = allowed(path, given, _TOKENIZER)
    if not text.get("hf_tokenizer_name"):
        return SimpleTokenizer(context_length=length, clean=given.get("clean", "lower"))
    family = str(read_config(folder / "config.json").get("model_type")) if (folder / "config.json").exists() else None
    with ours.copied_tokenizer(folder, family) as copy, offline(folder):
        return HFTokenizer(
            copy, context_length=length, tokenizer_mode=text.get("tokenizer_mode"), local_files_only=True,
            trust_remote_code=False, **given,
        )  # fmt: skip


def _check_vision(path: Path, vision: dict[str, Any]) -> None:
    name = vision.get("timm_model_name")
    if name is None:
        return
    import timm

    if not isinstance(name, str) or not _TIMM.fullmatch(name) or not timm.is_model(name.partition(".")[0]):
        reason = f"`timm_model_name` is {name!r:.60}; it must be a model of the installed timm"
        raise _wrong(path, reason)


def _check_sides(path: Path, sides: Any) -> None:
    """Memory grows with the square of the image size, whatever the weights are."""
    for side in sides if isinstance(sides, list) else [sides]:
        if side is not None and (not isinstance(side, int) or not 1 <= side <= MOST_PICTURE):
            raise _wrong(path, f"the image size is {side!r:.60}; it must be a whole number up to {MOST_PICTURE}")


def _check_text(path: Path, text: dict[str, Any]) -> None:
    kwargs = text.get("tokenizer_kwargs")
    if kwargs is not None and not isinstance(kwargs, dict):
        raise _wrong(path, f"`tokenizer_kwargs` is {kwargs!r:.60}; it must be an object")
    length = text.get("context_length", 77)
    if not isinstance(length, int) or not 1 <= length <= 1 << 16:
        raise _wrong(path, f"`context_length` is {length!r:.60}; it must be a whole number from 1 to 65,536")


def _text_tower(text: dict[str, Any], folder: Path) -> dict[str, Any] | None:
    """The config of a text tower of transformers, as plain values; None for one of open_clip."""
    name = text.get("hf_model_name")
    if not name:
        return None
    path = folder / "config.json"
    if not path.is_file():
        reason = f"the text tower of `{folder}` is `{name!s:.60}`, whose config.json is missing"
        raise WeightsError(folder, reason, hint="add that model's `config.json` and tokenizer to the folder")
    family = read_config(path).get("model_type")
    if family not in _FAMILIES:
        known = ", ".join(sorted(_FAMILIES))
        raise WeightsError(path, f"the text tower of `{folder}` is a {family!r:.60}; supported: {known}")
    made = ours.config(_FAMILIES[family], folder).to_dict()
    return {key: value for key, value in made.items() if not key.startswith("_")} | {"model_type": family}


def _wrong(path: Path, reason: str) -> WeightsError:
    hint = "it may need a newer open_clip, or be unsafe"
    return WeightsError(path, f"`{path}` is rejected: {reason}", hint=hint)
