"""CLIP in Studio's layout: an image tower of open_clip, and a text tower of transformers, shared with the image model.

The text tower is stored once, in the image model's folder (`text_encoder/`, diffusers layout); `weights/` here has the
rest: image tower, text projection, temperature. Importing this loads torch.

Try it: `clip = load(); clip.encode_text(["a red apple"]) @ clip.encode_pixels(array).T`
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import PIL.Image
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

import studio
from studio import devices
from studio.caching import cached_property
from studio.loaders import open_clip as loaders
from studio.loaders import transformers
from studio.media.pictures import square_on_white
from studio.weights import checksums
from studio_clip import convert
from studio_clip.folders import CONFIG, TENSORS, WEIGHTS, files, home, tokenizer_folder


class Head(torch.nn.Module):
    """The parameters of CLIP outside the towers: the text projection (W, D) and the temperature."""

    def __init__(self, width: int, embed: int) -> None:
        """`width` is the hidden size of the text tower, `embed` that of the embeddings."""
        super().__init__()
        self.text_projection = torch.nn.Parameter(torch.empty(width, embed))
        self.logit_scale = torch.nn.Parameter(torch.empty(()))


@dataclass(frozen=True)
class ClipModel:
    """A loaded CLIP.

    Attributes:
        visual: open_clip's image tower, for pictures of `size` x `size` pixels.
        text_encoder: transformers' `CLIPTextModel`.
        head: the text projection and the temperature.
        mean, std: normalisation of pixels in [0, 1].
    """

    visual: torch.nn.Module
    text_encoder: CLIPTextModel
    head: Head
    tokenizer: CLIPTokenizer
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Text embeddings: unit vectors, float32 (len(texts), D), on the model's device. Texts are truncated at 46
        tokens.
        """
        length = self.tokenizer.model_max_length
        tokens = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        states = self.text_encoder(input_ids=self.to_device(tokens.input_ids))
        return F.normalize((states.pooler_output @ self.head.text_projection).float(), dim=-1)

    @torch.inference_mode()
    def encode_pixels(self, pictures: np.ndarray) -> Tensor:
        """Image embeddings: unit vectors, float32 (N, D), on the model's device, of uint8 pictures (N, H, W, 3)."""
        x = self.to_device(torch.from_numpy(np.array(pictures))).permute(0, 3, 1, 2).float() / 255
        x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        mean, std = self.to_device(torch.tensor([self.mean, self.std]))[..., None, None]
        return F.normalize(self.visual(((x - mean) / std).to(self.head.logit_scale.dtype)).float(), dim=-1)

    def to_device(self, x: Tensor) -> Tensor:
        """Move a tensor to the model's device."""
        return devices.upload(x, self.head.logit_scale.device)

    @cached_property
    def temperature(self) -> float:
        """The logit scale: cosine similarities are multiplied by it before a softmax."""
        return float(self.head.logit_scale.exp())

    def encode_image(self, pictures: Iterable[PIL.Image.Image]) -> Tensor:
        """As `encode_pixels`, for pictures of any sizes: they are padded to a white square, as in training."""
        return self.encode_pixels(np.stack([square_on_white(each, self.size) for each in pictures]))


def save(folder: Path, model: open_clip.CLIP, text: CLIPTextConfig, vision: dict[str, Any]) -> None:
    """Write all but the text tower to `folder`, in float16, with the configuration and `SHA256SUMS`."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: (value.half() if value.is_floating_point() else value).contiguous().cpu()
        for name, value in model.state_dict().items()
        if name.startswith("visual.") or name in ("logit_scale", "text_projection")
    }
    safetensors.torch.save_file(tensors, folder / TENSORS)
    checksums.write(folder)
    preprocess = {"mean": [convert.MEAN] * 3, "std": [convert.STD] * 3}
    config = {"model_cfg": convert.config(text, vision), "preprocess_cfg": preprocess}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def save_text(folder: Path, model: open_clip.CLIP, text: CLIPTextConfig, tokenizer: CLIPTokenizer) -> None:
    """Write a text tower that is not shared with an image model: `text_encoder/` and `tokenizer/`, float32."""
    tower = CLIPTextModelWithProjection(text)
    tower.load_state_dict(convert.from_open_clip(model.state_dict()))
    tower.save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")


def text_tower(folder: Path = WEIGHTS, starter: Path | None = None) -> CLIPTextModelWithProjection:
    """The text tower with its projection, float32, assembled from its two folders."""
    encoder = (starter or home(folder)) / "text_encoder"
    tower = CLIPTextModelWithProjection(transformers.config("CLIPTextConfig", encoder))
    state = safetensors.torch.load_file(encoder / "model.safetensors")
    state = {f"text_model.{name}": value for stored, value in state.items() if (name := _text_name(stored))}
    projection = safetensors.torch.load_file(folder / TENSORS)["text_projection"]
    tower.load_state_dict(state | {"text_projection.weight": projection.T.contiguous()})
    return tower.float()


def load(folder: Path = WEIGHTS, starter: Path | None = None, device: str = "cpu", dtype: str = "float32") -> ClipModel:
    """Load CLIP with `studio.module`, which shares the text tower with the image model.

    Args:
        folder: the output of `save`.
        starter: a folder with `text_encoder/` and `tokenizer/`; by default `folder` if it has them, else the image
            model that ships.
        device, dtype: of the weights.

    Raises WeightsError for weights that are missing, damaged or of another shape.
    """
    starter = starter or home(folder)
    config, encoder = loaders.configuration(folder), starter / "text_encoder"
    shape, preprocess = config["model_cfg"], config["preprocess_cfg"]
    width, embed = shape["text_cfg"]["width"], shape["embed_dim"]
    tensors, text = files(folder, starter)
    network = loaders.build(shape, folder)
    place: Any = {"device": device, "dtype": dtype}
    return ClipModel(
        studio.module(lambda: network().visual, [tensors], rename=_visual_name, **place),
        studio.module(partial(_text_encoder, encoder), [text], rename=_text_name, **place),
        studio.module(partial(Head, width, embed), [tensors], rename=_head_name, **place),
        transformers.tokenizer("CLIPTokenizer", tokenizer_folder(starter)),
        shape["vision_cfg"]["image_size"],
        tuple(preprocess["mean"]),
        tuple(preprocess["std"]),
    )


def stock(folder: Path = WEIGHTS, starter: Path | None = None) -> open_clip.CLIP:
    """The same as open_clip's `CLIP`, float32, in evaluation mode, for training or use with open_clip."""
    model: open_clip.CLIP = loaders.build(loaders.configuration(folder)["model_cfg"], folder)()
    state = safetensors.torch.load_file(folder / TENSORS)
    tower = text_tower(folder, starter)
    model.load_state_dict(state | convert.to_open_clip(tower))
    return model.float().eval()


def _text_encoder(folder: Path) -> CLIPTextModel:
    return CLIPTextModel(transformers.config("CLIPTextConfig", folder))


def _text_name(stored: str) -> str | None:
    """The name in transformers 5, without the prefix of the file; None for the projection, which is the head's."""
    return None if stored == "text_projection.weight" else stored.removeprefix("text_model.")


def _visual_name(stored: str) -> str | None:
    return stored.removeprefix("visual.") if stored.startswith("visual.") else None


def _head_name(stored: str) -> str | None:
    return None if stored.startswith("visual.") else stored
