"""The base class of CLIP's generators: it loads the model that ships, or the one of the input `model`.

A model is a folder, in one of two layouts: the output of `studio train clip`, or open_clip's (`open_clip_config.json`
and a safetensors file, as on hubs). Importing this loads no torch; `load` does.

Try it: `studio embed "a red apple" --model file:my-clip`
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import studio
from studio.errors import WeightsError
from studio_clip import folders

if TYPE_CHECKING:
    from studio_clip.model import ClipModel
    from studio_clip.stock import OpenClipModel

MODEL: Any = studio.model_field(
    "a pulled model, or a folder with open_clip_config.json and safetensors; empty is Studio's starter"
)
PER_STEP = 32  # pictures (or texts) per step
MAX_PICTURES = 1000  # per request


class ClipGenerator(studio.Generator):
    """Base class of generators that run CLIP. Requests for the same folder share the model."""

    streams: ClassVar[bool] = True

    def __init__(self, folder: Path = folders.WEIGHTS) -> None:
        """`folder` is the default model."""
        self.folder = folder

    def weights(self, ref: studio.ModelRef) -> list[Path]:
        """The files that the embeddings depend on. Raises WeightsError for a folder without a CLIP, or with only
        pickles.
        """
        folder = ref.path or self.folder
        if not (folder / folders.CONFIG).is_file():
            reason = f"`{folder}` is not a CLIP model: it has no `{folders.CONFIG}`"
            raise WeightsError(folder, reason, hint="give a folder in open_clip's layout")
        return folders.files(folder) if folders.is_studio_layout(folder) else folders.stock_files(folder)

    def load(self, ref: studio.ModelRef, device: str, dtype: str) -> ClipModel | OpenClipModel:
        """Load both towers. The CLIP that ships shares its text tower with the image model, if the dtype is equal."""
        folder = ref.path or self.folder
        if folders.is_studio_layout(folder):
            from studio_clip import model

            return model.load(folder, device=device, dtype=dtype)
        from studio_clip import stock

        return stock.load(folder, device, dtype)
