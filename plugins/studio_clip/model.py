"""The starter CLIP as open_clip's `CLIP`: an image tower of its own, and the text tower that the image model ships.

The text tower is stored once, in the image model's folder (`text_encoder/`, as stock diffusers wants it); `weights/`
here holds the rest: image tower, projection of texts, temperature. Importing this loads torch.

Try it: `clip = load(); clip.texts(["a red apple"]) @ clip.pictures(array).T`
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from studio_clip import convert

WEIGHTS = Path(__file__).parent / "weights"
CONFIG, TENSORS = "open_clip_config.json", "clip.safetensors"


@dataclass(frozen=True)
class Clip:
    """A loaded CLIP: open_clip's model, the tokenizer, and the mean and deviation that pictures are brought to."""

    model: open_clip.CLIP
    tokenizer: CLIPTokenizer
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors, float32 (len(texts), 384). Texts are cut at 46 tokens."""
        length = self.tokenizer.model_max_length
        tokens = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        return self.model.encode_text(tokens.input_ids, normalize=True)

    @torch.inference_mode()
    def pictures(self, pictures: np.ndarray) -> Tensor:
        """Unit vectors, float32 (N, 384), of uint8 pictures (N, H, W, 3) of any one size."""
        x = torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 255
        x = F.interpolate(x, (convert.IMAGE_SIZE, convert.IMAGE_SIZE), mode="area")
        mean, deviation = (torch.tensor(values)[:, None, None] for values in (self.mean, self.deviation))
        return self.model.encode_image((x - mean) / deviation, normalize=True)


def save(folder: Path, model: open_clip.CLIP, text_config: object, embed: int) -> None:
    """Write all but the text tower into `folder`, float16. `text_config` is transformers' `CLIPTextConfig`."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {
        name: value.half().contiguous().cpu()
        for name, value in model.state_dict().items()
        if name.startswith("visual.") or name in ("logit_scale", "text_projection")
    }
    safetensors.torch.save_file(kept, folder / TENSORS)
    preprocess = {"mean": [convert.MEAN] * 3, "std": [convert.DEVIATION] * 3}
    config = {"model_cfg": convert.config(text_config, embed), "preprocess_cfg": preprocess}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def _starter() -> Path:
    return Path(str(importlib.resources.files("studio_diffusion"))) / "weights" / "starter"


def tokenizer_folder(starter: Path | None = None) -> Path:
    """Where the tokenizer lies: in the image model's folder, by default of the one that ships."""
    return (starter or _starter()) / "tokenizer"


def text_tower(folder: Path = WEIGHTS, starter: Path | None = None) -> CLIPTextModelWithProjection:
    """The text tower with its projection, float32, put together from the two places where they are kept."""
    encoder = (starter or _starter()) / "text_encoder"
    tower = CLIPTextModelWithProjection(CLIPTextConfig.from_pretrained(encoder, local_files_only=True))
    state = safetensors.torch.load_file(encoder / "model.safetensors")
    state = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in state.items()}
    projection = safetensors.torch.load_file(folder / TENSORS)["text_projection"]
    tower.load_state_dict(state | {"text_projection.weight": projection.T.contiguous()})
    return tower.float()


def load(folder: Path = WEIGHTS, starter: Path | None = None) -> Clip:
    """Load CLIP in float32 on the CPU.

    Args:
        folder: what `save` wrote.
        starter: the image model's folder, with `text_encoder/` and `tokenizer/`; by default the one that ships.
    """
    starter = starter or _starter()
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    model = open_clip.CLIP(**config["model_cfg"])
    state = safetensors.torch.load_file(folder / TENSORS)
    state |= convert.text_tower(safetensors.torch.load_file(starter / "text_encoder" / "model.safetensors"))
    model.load_state_dict(state)
    preprocess = config["preprocess_cfg"]
    tokens = CLIPTokenizer.from_pretrained(tokenizer_folder(starter), local_files_only=True)
    return Clip(model.float().eval(), tokens, tuple(preprocess["mean"]), tuple(preprocess["std"]))
