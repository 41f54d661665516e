"""Where a CLIP's files lie: its own folder, and the image model's, whose text tower it shares. Loads no torch."""

from __future__ import annotations

import importlib.resources
import json
from pathlib import Path
from typing import Any

WEIGHTS = Path(__file__).parent / "weights"
CONFIG, TENSORS = "open_clip_config.json", "clip.safetensors"


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


def configuration(folder: Path = WEIGHTS) -> dict[str, Any]:
    """The towers' shapes (`model_cfg`) and what pixels are brought by (`preprocess_cfg`), in open_clip's words."""
    found: dict[str, Any] = json.loads((folder / CONFIG).read_text("utf-8"))
    return found
