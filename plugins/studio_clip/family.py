"""What CLIP's generators share: the model that ships, or the one that an input names.

A model is a folder, in one of two forms: what `studio train clip` writes, or open_clip's own (`open_clip_config.json`
and a safetensors file, as on hubs). Importing this loads no torch; `load` does.

Try it: `studio embed "a red apple" --model file:my-clip`
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import studio
from studio.errors import WeightsError
from studio_clip import places

if TYPE_CHECKING:
    from studio_clip.model import Clip
    from studio_clip.stock import Stock

MODEL: Any = studio.model_field(
    "a folder with open_clip_config.json and safetensors, or a pulled one; empty is Studio's own"
)
TOGETHER = 32  # pictures in a step
MOST = 1000  # pictures in a request


class Family(studio.Generator):
    """A generator on CLIP. All that are given one folder share one model."""

    streams: ClassVar[bool] = True

    def __init__(self, folder: Path = places.WEIGHTS) -> None:
        """Use the CLIP in `folder` where inputs name none."""
        self.folder = folder

    def weights(self, ref: studio.ModelRef) -> list[Path]:
        """What decides the vectors. Raises WeightsError for a folder that is no CLIP, or has pickles alone."""
        folder = ref.path or self.folder
        if not (folder / places.CONFIG).is_file():
            reason = f"`{folder}` is no CLIP: it has no `{places.CONFIG}`"
            raise WeightsError(folder, reason, hint="name a folder in open_clip's layout")
        return places.files(folder) if places.is_own(folder) else places.stock_files(folder)

    def load(self, ref: studio.ModelRef, device: str, dtype: str) -> Clip | Stock:
        """Both towers. The text tower of the CLIP that ships is the image model's, if that is loaded likewise."""
        folder = ref.path or self.folder
        if places.is_own(folder):
            from studio_clip import model

            return model.load(folder, device=device, dtype=dtype)
        from studio_clip import stock

        return stock.load(folder, device, dtype)
