"""The layout of diffusers' folders: ``model_index.json``, a folder for each component, and its weights. Loads no torch.

Try it: `tensors_of(part(folder, "unet"))`
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from studio.errors import WeightsError
from studio.loaders import MOST_INDEX, check_index, read_config

INDEX = "model_index.json"
_TEXTS = (".json", ".txt", ".model", ".jinja")
_AGAIN = "download the model again, or use another"
_PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth", "*.msgpack", "*.h5")


def index_of(folder: Path) -> dict[str, Any]:
    """The content of ``model_index.json``. Raises WeightsError for a folder of another library, or of none."""
    if (folder / INDEX).exists():
        index = read_config(folder / INDEX)
        if not isinstance(index.get("_class_name"), str):
            raise WeightsError(folder / INDEX, f"`{folder / INDEX}` names no pipeline class of diffusers", hint=_AGAIN)
        return index
    raise WeightsError(folder, f"`{folder}` is not a diffusers pipeline: {_what_it_is(folder)}",
                       hint=f"give a folder that contains `{INDEX}`")  # fmt: skip


def _what_it_is(folder: Path) -> str:
    if not folder.is_dir():
        return "there is no such folder"
    if (folder / "adapter_config.json").exists():
        return "it is an adapter of peft, such as LoRA"
    if (folder / "open_clip_config.json").exists():
        return "it is a model of open_clip"
    if (folder / "config.json").exists():
        config = read_config(folder / "config.json")
        if "_class_name" in config:
            return f"it is one component, a `{config['_class_name']!s:.60}`"
        if "model_type" in config:
            return f"it is a `{config['model_type']!s:.60}` model of transformers"
    return f"it has no `{INDEX}`"


def only_file(folder: Path) -> Path | None:
    """The single file of a folder that has nothing else of a model, as pulled from a hub."""
    if (folder / INDEX).exists() or (folder / "config.json").exists():
        return None
    found = [each for each in sorted(folder.glob("*")) if each.suffix in (".safetensors", ".gguf")]
    return found[0] if len(found) == 1 else None


def is_pipeline(path: Path) -> bool:
    """Whether a model is a pipeline of diffusers: a folder with its index, or a single file, alone or in its folder."""
    return path.is_file() or (path / INDEX).exists() or only_file(path) is not None


def components(folder: Path, index: dict[str, Any]) -> dict[str, list[str]]:
    """Name -> [library, class] of the components in a folder's ``model_index.json``; those that are null are left out.

    Raises WeightsError for a name that is not an identifier: it is the name of the component's folder.
    """
    found = {
        name: value
        for name, value in index.items()
        if isinstance(value, list) and len(value) == 2 and all(isinstance(each, str) for each in value)
    }
    if others := [name for name in found if not name.isidentifier()]:
        message = f"`{folder / INDEX}` has a component `{others[0]:.60}`, which is not the name of a component"
        raise WeightsError(folder / INDEX, message, hint=_AGAIN)
    return found


def part(folder: Path, name: str) -> Path:
    """The folder of a component; a model with one network may have its files beside `model_index.json`."""
    beside = not (folder / name).is_dir() and (folder / "config.json").exists()
    return folder if beside else folder / name


def tensors_of(folder: Path) -> list[Path]:
    """The safetensors of a component: those in its index, else those without a variant in the name
    (``….fp16.safetensors``), else those of a variant, if any.

    Raises WeightsError for an index that cannot be read, files that are missing, and several variants.
    """
    check_index(folder)
    files = sorted(folder.glob("*.safetensors"))
    files = [file for file in files if file.stem.startswith(("model", "diffusion_pytorch_model"))] or files
    variants = sorted({_variant(file) for file in files})
    if not variants:
        return []
    chosen = next((each for each in ("", "fp16", "bf16") if each in variants), variants[0])
    if chosen == variants[0] and chosen and len(variants) > 1:
        names = ", ".join(f"`{each}`" for each in variants)
        raise WeightsError(folder, f"`{folder}` has weights in the variants {names}", hint="keep the files of one")
    return _indexed(folder, chosen, [file for file in files if _variant(file) == chosen])


def _variant(file: Path) -> str:
    """`fp16` for ``model.fp16.safetensors`` and ``model.fp16-00001-of-00002.safetensors``, or ""."""
    pieces = file.stem.split(".")[1:]
    return pieces[0].partition("-")[0] if pieces else ""


def _indexed(folder: Path, variant: str, files: list[Path]) -> list[Path]:
    """The files that the index of a variant names, or the files themselves without an index."""
    found = [
        path for path in sorted(folder.glob("*.index*.json")) if _of(path) == variant and ".safetensors" in path.name
    ]
    if not found:
        return files
    shards = read_config(found[0], MOST_INDEX).get("weight_map")
    if not isinstance(shards, dict):
        raise WeightsError(found[0], f"`{found[0]}` lists no weight files", hint="download the model again")
    named = sorted(set(shards.values()))
    missing = [name for name in named if not (folder / name).exists()]
    if missing and (len(missing) < len(named) or not files):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        message = f"`{folder}` lacks the weight file `{missing[0]}`{more}, which `{found[0].name}` lists"
        raise WeightsError(folder / missing[0], message, hint="download the model again")
    return files if missing else [folder / name for name in named]


def _of(index: Path) -> str:
    """The variant of an index: ``model.safetensors.index.fp16.json`` or ``model.fp16.safetensors.index.json``."""
    pieces = [each for each in index.name.split(".")[1:] if each not in ("safetensors", "index", "json")]
    return pieces[0] if pieces else ""


def weights_of(folder: Path) -> list[Path]:
    """As `tensors_of`. Raises WeightsError if there are none."""
    found = tensors_of(folder)
    if found:
        return found
    if not folder.is_dir():
        raise WeightsError(folder, f"the model's component `{folder.name}` is missing: no folder `{folder}`",
                           hint="download the model again, with all its folders")  # fmt: skip
    pickles = [file.name for pattern in _PICKLES for file in sorted(folder.glob(pattern))]
    if pickles:
        message = f"`{folder}` has its weights as a pickle (`{pickles[0]}`), which can run code and is not loaded"
        raise WeightsError(folder, message, hint="use a model with safetensors, or convert it with diffusers")
    raise WeightsError(folder, f"`{folder}` has no safetensors", hint="download the model again")


def texts_of(folder: Path) -> list[Path]:
    """The configs and vocabularies of a component."""
    return [file for file in sorted(folder.glob("*")) if file.suffix in _TEXTS and file.is_file()]
