"""Image editing: fitting a picture to a size, inpainting masks and boxes, and outpainting borders.

Only Pillow and numpy. `image.py` turns a `Canvas` into a state.

Try it: ``Canvas.of(studio.Image.open("a.png"), (128, 128), box="0,0,64,128").mask.mean()`` is 0.5
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from studio.errors import InputError
from studio.media import Image, pictures

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    from numpy.typing import NDArray

FITS = ("crop", "letterbox")
WHITE = (255, 255, 255)
_NEAR = 20  # levels from black or white that count as black or white


def numbers(text: str, what: str) -> tuple[int, int, int, int]:
    """Parse four whole numbers of at least 0, as in ``1,2,3,4``. Raises ValueError, which names them as `what`."""
    found = re.fullmatch(r"\s*(\d{1,5})\s*,\s*(\d{1,5})\s*,\s*(\d{1,5})\s*,\s*(\d{1,5})\s*", text)
    if not found:
        raise ValueError(f"must be {what}: four comma-separated whole numbers of pixels, 0 or more")
    a, b, c, d = (int(each) for each in found.groups())
    return a, b, c, d


@dataclass(frozen=True)
class Canvas:
    """A picture at the size of the output, and where to repaint it.

    Attributes:
        pixels: uint8 (H, W, 3).
        mask: float32 (H, W) from 0, keep exactly, to 1, repaint; None for the whole picture.
        notices: changes to the picture, for the user.
    """

    pixels: NDArray[np.uint8]
    mask: NDArray[np.float32] | None
    notices: tuple[str, ...]

    @classmethod
    def of(cls, image: Image, size: tuple[int, int], *, fit: str = "crop", mask: Image | None = None, box: str = "",
           extend: str = "") -> Canvas:  # fmt: skip
        """Fit a picture and its mask to `size` (width, height), then add borders.

        Args:
            fit: ``crop`` fills the size and crops the rest, ``letterbox`` pads with white.
            mask: of the picture's size; white is repainted, black kept, grey blended. One with transparency is white
                paint on a transparent layer, or a picture whose transparent parts are repainted.
            box: ``x,y,width,height`` in the picture's own pixels, to repaint.
            extend: ``left,top,right,bottom`` pixels to add around the fitted picture.

        Raises InputError for a mask of another size or without white, and for a box outside the picture.
        """
        import numpy as np

        notices: list[str] = []
        if image.mode == "RGBA":
            notices.append("transparent parts of the picture were put on white")
        drawn = _drawn(image, mask, box, notices)
        if image.size != size:
            how = "cropped" if fit == "crop" else "letterboxed on white"
            ratio = image.size[0] * size[1] == image.size[1] * size[0]
            notices.append(f"the picture, {_words(image.size)}, was scaled{'' if ratio else f' and {how}'} "
                           f"to {_words(size)}")  # fmt: skip
        pixels = np.asarray(_fit(pictures.on_white(image.pil), size, fit, WHITE))
        repaint = None if drawn is None else _clean(np.asarray(_fit(drawn, size, fit, 0), np.float32) / np.float32(255))
        if repaint is not None and not repaint.any():
            raise InputError("mask", f"nothing is left to repaint: cropping to {_words(size)} cut off all of the "
                             "mask", hint="give `fit` as `letterbox`")  # fmt: skip
        if extend:
            left, top, right, bottom = numbers(extend, "LEFT,TOP,RIGHT,BOTTOM")
            border = ((top, bottom), (left, right))
            repaint = np.zeros(pixels.shape[:2], np.float32) if repaint is None else repaint
            repaint = np.pad(repaint, border, constant_values=np.float32(1))
            pixels = np.pad(pixels, (*border, (0, 0)), mode="edge")
        return cls(pixels, repaint, tuple(notices))

    def cells(self, factor: int) -> NDArray[np.float32] | None:
        """The latents to repaint, of `factor` pixels per side: float32 (H / factor, W / factor), 1 where any of their
        pixels is to be repainted, else 0.
        """
        if self.mask is None:
            return None
        height, width = (side // factor for side in self.mask.shape)
        return (self.mask.reshape(height, factor, width, factor).max((1, 3)) > 0).astype(self.mask.dtype)


def composite(made: NDArray[np.uint8], pixels: NDArray[np.uint8], mask: NDArray[np.float32]) -> NDArray[np.uint8]:
    """`made` where the mask (H, W) is 1, `pixels` exactly where it is 0; both uint8 (H, W, 3)."""
    import numpy as np

    share = mask[:, :, None]
    mixed: NDArray[np.uint8] = (pixels + share * (made.astype(np.float32) - pixels)).round().astype(np.uint8)
    return mixed


def _grey(mask: Image, notices: list[str]) -> PIL.Image.Image:
    """The mask as grey, white where to repaint. Masks with transparency are of two kinds: white or black paint on a
    transparent layer, or, as in paint programs and OpenAI's API, a picture with a hole where to repaint.
    """
    import numpy as np
    import PIL.Image

    pil = mask.pil
    if pil.mode != "RGBA" or pil.getchannel("A").getextrema() == (255, 255):
        return pil.convert("L")
    pixels = np.asarray(pil)
    paint = pixels[pixels[:, :, 3] > 0][:, :3]
    marks = ((paint < _NEAR) | (paint > 255 - _NEAR)).all(1) & (paint.max(1) - paint.min(1) < _NEAR)
    if len(paint) and marks.mean() > 0.95 and paint.max() > 255 - _NEAR:
        return _over(mask, 0).convert("L")
    notices.append("the mask has transparent parts: they are repainted")
    return PIL.Image.fromarray(255 - pixels[:, :, 3])


def _clean(mask: NDArray[np.float32]) -> NDArray[np.float32]:
    """Near black to black and near white to white: JPEG noise would repaint latents that are to be kept."""
    import numpy as np

    near = np.float32(_NEAR / 255)
    return np.where(mask < near, np.float32(0), np.where(mask > 1 - near, np.float32(1), mask))


def _drawn(image: Image, mask: Image | None, box: str, notices: list[str]) -> PIL.Image.Image | None:
    """The mask at the picture's own size, from a mask or a box."""
    import PIL.Image

    if mask is not None:
        if mask.size != image.size:
            raise InputError("mask", f"`mask` is {_words(mask.size)}, but `image` is {_words(image.size)}",
                             hint="resize the mask to the size of the picture")  # fmt: skip
        drawn = _grey(mask, notices)
        if drawn.getextrema() == (0, 0):
            raise InputError("mask", "`mask` is black everywhere, so nothing would be repainted",
                             hint="paint white what to repaint")  # fmt: skip
        return drawn
    if not box:
        return None
    x, y, width, height = numbers(box, "X,Y,WIDTH,HEIGHT")
    if not (width and height and x + width <= image.size[0] and y + height <= image.size[1]):
        raise InputError("box", f"`box` is `{box}`, but must lie within the {_words(image.size)} of `image` and have "
                         "at least one pixel", hint="give X,Y,WIDTH,HEIGHT from the upper left corner")  # fmt: skip
    drawn = PIL.Image.new("L", image.size, 0)
    drawn.paste(255, (x, y, x + width, y + height))
    return drawn


def _over(image: Image, grey: int) -> PIL.Image.Image:
    """The picture composited over grey, if it has transparency."""
    import PIL.Image

    pil = image.pil
    if pil.mode != "RGBA":
        return pil
    return PIL.Image.alpha_composite(PIL.Image.new("RGBA", pil.size, (grey, grey, grey, 255)), pil)


def _fit(pil: PIL.Image.Image, size: tuple[int, int], fit: str, colour: Any) -> PIL.Image.Image:
    import PIL.Image
    import PIL.ImageOps

    if pil.size == size:
        return pil
    if fit == "crop":
        return PIL.ImageOps.fit(pil, size, PIL.Image.Resampling.LANCZOS)
    return PIL.ImageOps.pad(pil, size, PIL.Image.Resampling.LANCZOS, color=colour)


def _words(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
