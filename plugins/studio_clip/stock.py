"""Any CLIP in open_clip's own layout, from a local folder: its towers, its tokenizer, its way with pictures.

Nothing is fetched: a text tower that is another library's (`hf_model_name`) needs its `config.json` in the folder.
Knows nothing of the host. Importing this loads torch.

Try it: `stock.load(Path("folder"), "cpu", "float32").texts(["a red apple"])`
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
from studio_clip.places import CONFIG, stock_files


@dataclass(frozen=True)
class Stock:
    """A loaded open_clip model.

    Attributes:
        net: open_clip's `CLIP`, `CustomTextCLIP` or `CoCa`.
        tokenize: texts -> int64 (N, context).
        transform: a picture (RGB) -> float32 (3, H, W), as open_clip evaluates.
    """

    net: Any
    tokenize: Callable[[list[str]], Tensor]
    transform: Callable[[PIL.Image.Image], Tensor]

    def here(self, x: Tensor) -> Tensor:
        """The tensor on the model's device."""
        return devices.upload(x, self.net.logit_scale.device)

    @cached_property
    def temperature(self) -> float:
        """What cosines are multiplied by before a softmax."""
        return float(self.net.logit_scale.exp())

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors, float32 (len(texts), D), on the model's device."""
        tokens = self.here(self.tokenize(list(texts)))
        return F.normalize(self.net.encode_text(tokens).float(), dim=-1)

    @torch.inference_mode()
    def images(self, pictures: Iterable[PIL.Image.Image]) -> Tensor:
        """Unit vectors, float32 (N, D), on the model's device; what is transparent becomes white."""
        x = torch.stack([self.transform(on_white(each)) for each in pictures])  # (N, 3, H, W)
        return F.normalize(self.net.encode_image(self.here(x).to(self.net.logit_scale.dtype)).float(), dim=-1)


def load(folder: Path, device: str, dtype: str) -> Stock:
    """Read the folder. Raises WeightsError for what is missing, damaged, unknown or of another shape."""
    config = loaders.configuration(folder)
    shape = config["model_cfg"]
    try:
        net = studio.module(loaders.build(shape, folder), stock_files(folder)[:1], device=device, dtype=dtype)
        tokenizer = loaders.tokenizer(shape["text_cfg"], folder)
        settings = PreprocessCfg(**{"size": net.visual.image_size, **config["preprocess_cfg"]})
        transform = image_transform_v2(settings, is_train=False)
    except StudioError:
        raise
    except Exception as error:  # what a config of another version makes of open_clip is not a closed list
        reason = f"open_clip cannot build the model of `{folder}`: {error}"
        raise WeightsError(folder / CONFIG, reason, hint="its config may be of a newer open_clip") from error
    return Stock(net, tokenizer, transform)
