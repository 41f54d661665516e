"""What CLIP's generators share: the model that ships, or the one that an input names.

A model is a folder, in one of two forms: what `studio train clip` writes, or open_clip's own (`open_clip_config.json`
and a safetensors file, as on hubs). Importing this loads no torch; `load` does.

Try it: `studio embed "a red apple" --model file:my-clip`
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import studio
from studio import models
from studio.errors import WeightsError
from studio.serving import others
from studio_clip import places

if TYPE_CHECKING:
    from studio_clip.model import Clip
    from studio_clip.stock import Stock

MODEL: Any = studio.field(
    "", help="a folder with open_clip_config.json and safetensors, or a pulled one; empty is Studio's own",
    max_length=4000,
)  # fmt: skip
TOGETHER = 32  # pictures in a step
MOST = 1000  # pictures in a request


class Family(studio.Generator):
    """A generator on CLIP. All that are given one folder share one model."""

    streams: ClassVar[bool] = True

    def __init__(self, folder: Path = places.WEIGHTS) -> None:
        """Use the CLIP in `folder`."""
        self.folder = folder
        self._others = others(type(self))

    def serving(self, inputs: Any) -> Family:
        """The generator with the model that the inputs name. Raises ModelError, UnknownName."""
        if not inputs.model:
            return self
        return self._others(models.path(inputs.model).absolute())

    def weights(self) -> list[Path]:
        """What decides the vectors. Raises WeightsError for a folder that is no CLIP, or has pickles alone."""
        if not (self.folder / places.CONFIG).is_file():
            reason = f"`{self.folder}` is no CLIP: it has no `{places.CONFIG}`"
            raise WeightsError(self.folder, reason, hint="name a folder in open_clip's layout")
        if places.is_own(self.folder):
            return places.files(self.folder)
        return places.stock_files(self.folder)

    def load(self, device: str, dtype: str) -> Clip | Stock:
        """Both towers. The text tower of the CLIP that ships is the image model's, if that is loaded likewise."""
        if places.is_own(self.folder):
            from studio_clip import model

            return model.load(self.folder, device=device, dtype=dtype)
        from studio_clip import stock

        return stock.load(self.folder, device, dtype)
