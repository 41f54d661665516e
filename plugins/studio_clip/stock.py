"""Any CLIP in open_clip's layout, from a local folder: its towers, tokenizer and image transform.

Nothing is downloaded: a text tower of transformers (`hf_model_name`) needs its `config.json` in the folder. Importing
this loads torch.

Try it: `stock.load(Path("folder"), "cpu", "float32").encode_text(["a red apple"])`
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import Tensor
from torch.nn import functional as F

import studio
from studio import devices
from studio.caching import cached_property
from studio.errors import StudioError, WeightsError
from studio.loaders import open_clip as loaders
from studio.media.pictures import on_white
from studio_clip.folders import CONFIG, stock_files


@dataclass(frozen=True)
class OpenClipModel:
    """A loaded open_clip model.

    Attributes:
        net: open_clip's `CLIP`, `CustomTextCLIP` or `CoCa`.
        tokenize: texts -> int64 (N, context).
        transform: a picture (RGB) -> float32 (3, H, W), open_clip's evaluation transform.
    """

    net: Any
    tokenize: Callable[[list[str]], Tensor]
    transform: Callable[[PIL.Image.Image], Tensor]

    def to_device(self, x: Tensor) -> Tensor:
        """Move a tensor to the model's device."""
        return devices.upload(x, self.net.logit_scale.device)

    @cached_property
    def temperature(self) -> float:
        """The logit scale: cosine similarities are multiplied by it before a softmax."""
        return float(self.net.logit_scale.exp())

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Text embeddings: unit vectors, float32 (len(texts), D), on the model's device."""
        tokens = self.to_device(self.tokenize(list(texts)))
        return F.normalize(self.net.encode_text(tokens).float(), dim=-1)

    @torch.inference_mode()
    def encode_image(self, pictures: Iterable[PIL.Image.Image]) -> Tensor:
        """Image embeddings: unit vectors, float32 (N, D), on the model's device; transparency becomes white."""
        x = torch.stack([self.transform(on_white(each)) for each in pictures])  # (N, 3, H, W)
        return F.normalize(self.net.encode_image(self.to_device(x).to(self.net.logit_scale.dtype)).float(), dim=-1)


def load(folder: Path, device: str, dtype: str) -> OpenClipModel:
    """Load a folder. Raises WeightsError for files that are missing, damaged, unsupported or of another shape."""
    config = loaders.configuration(folder)
    shape = config["model_cfg"]
    try:
        net = studio.module(loaders.build(shape, folder), stock_files(folder)[:1], device=device, dtype=dtype)
        tokenizer = loaders.tokenizer(shape["text_cfg"], folder)
        settings = PreprocessCfg(**{"size": net.visual.image_size, **config["preprocess_cfg"]})
        transform = image_transform_v2(settings, is_train=False)
    except StudioError:
        raise
    except Exception as error:  # a config of another version may fail anywhere in open_clip
        reason = f"open_clip cannot build the model of `{folder}`: {error}"
        raise WeightsError(folder / CONFIG, reason, hint="its config may need a newer open_clip") from error
    return OpenClipModel(net, tokenizer, transform)
