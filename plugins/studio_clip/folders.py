"""The folders and files of a CLIP model. Loads no torch.

Two layouts are supported: Studio's, whose text tower is in transformers' layout and may be the image model's, and
open_clip's, which is one file.
"""

from __future__ import annotations

import importlib.resources
from pathlib import Path

from studio.errors import WeightsError
from studio.models.formats import is_pickle

WEIGHTS = Path(__file__).parent / "weights"
CONFIG, TENSORS = "open_clip_config.json", "clip.safetensors"
STOCK_TENSORS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors")
TOKENIZER_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "vocab.txt")


def starter_folder() -> Path:
    """The folder of the image model that ships with Studio."""
    return Path(str(importlib.resources.files("studio_diffusion"))) / "weights" / "starter"


def home(folder: Path) -> Path:
    """The folder with the text tower of a CLIP: its own, or that of the image model that ships."""
    return folder if (folder / "text_encoder").exists() else starter_folder()


def tokenizer_folder(starter: Path | None = None) -> Path:
    """The tokenizer's folder, in that of the image model; by default the one that ships."""
    return (starter or starter_folder()) / "tokenizer"


def files(folder: Path = WEIGHTS, starter: Path | None = None) -> list[Path]:
    """The weight files of a CLIP in Studio's layout."""
    return [folder / TENSORS, (starter or home(folder)) / "text_encoder" / "model.safetensors"]


def is_studio_layout(folder: Path) -> bool:
    """Whether the folder has Studio's layout."""
    return (folder / TENSORS).is_file()


def stock_files(folder: Path) -> list[Path]:
    """The files of an open_clip folder that its embeddings depend on: weights, config and tokenizer.

    Raises WeightsError if there is no safetensors file, or several of which none has open_clip's name.
    """
    tensors = sorted(folder.glob("*.safetensors"))
    named = [each for each in tensors if each.name in STOCK_TENSORS]
    chosen = named[:1] or tensors
    if not chosen:
        pickles = sorted(each.name for each in folder.iterdir() if is_pickle(each.name))
        found = f"only `{pickles[0]}`, a pickle, which could run code" if pickles else "no weights"
        hint = "convert it to safetensors with `studio models pull --convert`" if pickles else None
        raise WeightsError(folder, f"the CLIP `{folder}` has {found}", hint=hint or "download its *.safetensors")
    if len(chosen) > 1:
        several = ", ".join(f"`{each.name}`" for each in tensors[:5])
        raise WeightsError(folder, f"the CLIP `{folder}` has {len(tensors)} weight files: {several}",
                           hint=f"rename the right one to `{STOCK_TENSORS[0]}`")  # fmt: skip
    words = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    return [*chosen, folder / CONFIG, *words]
