"""The video model's folder: `config.json`, sharded float16 safetensors, and checksums.

VAE, text encoder and tokenizer are in the image starter's folder.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from studio.files import new_folder
from studio.weights import checksums
from studio_video.model import VideoTransformer

CONFIG = "config.json"
_MOST = 12 << 20  # bytes per shard


def save(folder: Path, model: VideoTransformer) -> None:
    """Write the folder atomically."""
    pieces: list[dict[str, Tensor]] = [{}]
    for name, value in model.state_dict().items():
        if sum(each.nbytes for each in pieces[-1].values()) > _MOST:
            pieces.append({})
        pieces[-1][name] = value.half().cpu().contiguous()
    with new_folder(folder) as part:
        (part / CONFIG).write_text(json.dumps(model.config.as_dict(), indent=2) + "\n", "utf-8")
        for index, piece in enumerate(pieces):
            save_file(piece, part / f"model-{index + 1}-of-{len(pieces)}.safetensors")
        checksums.write(part)
