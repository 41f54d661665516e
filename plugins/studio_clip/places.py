"""Where a CLIP's files lie: its own folder, and the image model's, whose text tower it shares. Loads no torch.

Two forms of folder are read: ours, whose text tower is in transformers' layout, and open_clip's, which is one file.
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
    """The image model that ships."""
    return Path(str(importlib.resources.files("studio_diffusion"))) / "weights" / "starter"


def home(folder: Path) -> Path:
    """Where the text tower of a CLIP lies: beside the rest, or in the image model that ships."""
    return folder if (folder / "text_encoder").exists() else starter_folder()


def tokenizer_folder(starter: Path | None = None) -> Path:
    """Where the tokenizer lies: in the image model's folder, by default of the one that ships."""
    return (starter or starter_folder()) / "tokenizer"


def files(folder: Path = WEIGHTS, starter: Path | None = None) -> list[Path]:
    """The weight files that `load` reads."""
    return [folder / TENSORS, (starter or home(folder)) / "text_encoder" / "model.safetensors"]


def is_own(folder: Path) -> bool:
    """Whether it is of our form."""
    return (folder / TENSORS).is_file()


def stock_files(folder: Path) -> list[Path]:
    """What decides the vectors of an open_clip folder: its one safetensors file, the config and the tokenizer's files.

    Raises WeightsError where there is no such file, or several of which none has open_clip's name.
    """
    tensors = sorted(folder.glob("*.safetensors"))
    named = [each for each in tensors if each.name in STOCK_TENSORS]
    chosen = named[:1] or tensors
    if not chosen:
        pickles = sorted(each.name for each in folder.iterdir() if is_pickle(each.name))
        found = f"only `{pickles[0]}`, a pickle, and loading one runs its code" if pickles else "no weights"
        hint = "`studio models pull --convert` keeps a checkpoint's tensors as safetensors" if pickles else None
        raise WeightsError(folder, f"the CLIP `{folder}` has {found}", hint=hint or "get its *.safetensors")
    if len(chosen) > 1:
        several = ", ".join(f"`{each.name}`" for each in tensors[:5])
        raise WeightsError(folder, f"the CLIP `{folder}` has {len(tensors)} weight files: {several}",
                           hint=f"name the one that is meant `{STOCK_TENSORS[0]}`")  # fmt: skip
    words = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    return [*chosen, folder / CONFIG, *words]
