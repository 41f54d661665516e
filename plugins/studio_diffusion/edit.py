"""What of a picture is kept and what is drawn anew: fitting to a size, masks, boxes, and room at the sides.

Pure Pillow and numpy; knows nothing of latents, models or the host. `image.py` turns a `Canvas` into a state.

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
_NEAR = 20  # levels from black or white that count as it


def numbers(text: str, what: str) -> tuple[int, int, int, int]:
    """Four whole numbers from 0 on, of ``1,2,3,4``. Raises ValueError, which says `what` they are."""
    found = re.fullmatch(r"\s*(\d{1,5})\s*,\s*(\d{1,5})\s*,\s*(\d{1,5})\s*,\s*(\d{1,5})\s*", text)
    if not found:
        raise ValueError(f"must be {what}, four whole numbers of pixels from 0 with commas between them")
    a, b, c, d = (int(each) for each in found.groups())
    return a, b, c, d


@dataclass(frozen=True)
class Canvas:
    """A picture at the size of the result, and where it is to be drawn anew.

    Attributes:
        pixels: uint8 (H, W, 3).
        mask: float32 (H, W) from 0, kept to the last bit, to 1, drawn anew; None if nothing is asked to be kept.
        notices: what was done to the picture, for the user.
    """

    pixels: NDArray[np.uint8]
    mask: NDArray[np.float32] | None
    notices: tuple[str, ...]

    @classmethod
    def of(cls, image: Image, size: tuple[int, int], *, fit: str = "crop", mask: Image | None = None, box: str = "",
           extend: str = "") -> Canvas:  # fmt: skip
        """Fit a picture to `size` (width, height), its mask with it, then put room at the sides.

        Args:
            fit: ``crop`` fills the size and cuts what is over, ``letterbox`` shows all on white.
            mask: as large as the picture; white is drawn anew, black kept, grey between mixed. One with clear parts is
                white paint on a clear layer, or a picture whose clear parts are drawn anew.
            box: ``x,y,width,height`` in the picture's own pixels, drawn anew.
            extend: ``left,top,right,bottom`` pixels around the fitted picture, drawn anew.

        Raises InputError for a mask of another size or without white, and for a box that leaves the picture.
        """
        import numpy as np

        notices: list[str] = []
        if image.mode == "RGBA":
            notices.append("what is clear in the picture was put on white")
        drawn = _drawn(image, mask, box, notices)
        if image.size != size:
            how = "cropped" if fit == "crop" else "letterboxed on white"
            ratio = image.size[0] * size[1] == image.size[1] * size[0]
            notices.append(f"the picture, {_words(image.size)}, was scaled{'' if ratio else f' and {how}'} "
                           f"to {_words(size)}")  # fmt: skip
        pixels = np.asarray(_fit(pictures.on_white(image.pil), size, fit, WHITE))
        anew = None if drawn is None else _clean(np.asarray(_fit(drawn, size, fit, 0), np.float32) / np.float32(255))
        if anew is not None and not anew.any():
            raise InputError("mask", f"nothing is left to draw: cropping to {_words(size)} cut off all that is to be "
                             "drawn anew", hint="give `fit` as `letterbox`")  # fmt: skip
        if extend:
            left, top, right, bottom = numbers(extend, "LEFT,TOP,RIGHT,BOTTOM")
            room = ((top, bottom), (left, right))
            anew = np.zeros(pixels.shape[:2], np.float32) if anew is None else anew
            anew = np.pad(anew, room, constant_values=np.float32(1))
            pixels = np.pad(pixels, (*room, (0, 0)), mode="edge")
        return cls(pixels, anew, tuple(notices))

    def cells(self, factor: int) -> NDArray[np.float32] | None:
        """Where latents of `factor` pixels a side are drawn anew, float32 (H / factor, W / factor) of 0 and 1: where
        any of their pixels is.
        """
        if self.mask is None:
            return None
        height, width = (side // factor for side in self.mask.shape)
        return (self.mask.reshape(height, factor, width, factor).max((1, 3)) > 0).astype(self.mask.dtype)


def composite(made: NDArray[np.uint8], pixels: NDArray[np.uint8], mask: NDArray[np.float32]) -> NDArray[np.uint8]:
    """`made` where the mask (H, W) is 1, `pixels` to the last bit where it is 0; both uint8 (H, W, 3)."""
    import numpy as np

    share = mask[:, :, None]
    mixed: NDArray[np.uint8] = (pixels + share * (made.astype(np.float32) - pixels)).round().astype(np.uint8)
    return mixed


def _grey(mask: Image, notices: list[str]) -> PIL.Image.Image:
    """The mask as grey, white where to draw. One with clear parts is of two kinds: white or black paint on a clear
    layer, or, as paint programs and OpenAI's API have it, a picture with a hole where to draw.
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
    notices.append("the mask is a picture with clear parts: what is clear is drawn anew")
    return PIL.Image.fromarray(255 - pixels[:, :, 3])


def _clean(mask: NDArray[np.float32]) -> NDArray[np.float32]:
    """Nearly black as black and nearly white as white: JPEG leaves noise, which would draw cells that are kept."""
    import numpy as np

    near = np.float32(_NEAR / 255)
    return np.where(mask < near, np.float32(0), np.where(mask > 1 - near, np.float32(1), mask))


def _drawn(image: Image, mask: Image | None, box: str, notices: list[str]) -> PIL.Image.Image | None:
    """The picture's mask, of its own size, from a mask or a box."""
    import PIL.Image

    if mask is not None:
        if mask.size != image.size:
            raise InputError("mask", f"`mask` is {_words(mask.size)}, but `image` is {_words(image.size)}",
                             hint="make the mask as large as the picture")  # fmt: skip
        drawn = _grey(mask, notices)
        if drawn.getextrema() == (0, 0):
            raise InputError("mask", "`mask` is black everywhere, so nothing would be drawn",
                             hint="paint white what is to be drawn anew")  # fmt: skip
        return drawn
    if not box:
        return None
    x, y, width, height = numbers(box, "X,Y,WIDTH,HEIGHT")
    if not (width and height and x + width <= image.size[0] and y + height <= image.size[1]):
        raise InputError("box", f"`box` is `{box}`, but must lie within the {_words(image.size)} of `image` and have "
                         "at least one pixel", hint="give X,Y,WIDTH,HEIGHT from the left upper corner")  # fmt: skip
    drawn = PIL.Image.new("L", image.size, 0)
    drawn.paste(255, (x, y, x + width, y + height))
    return drawn


def _over(image: Image, grey: int) -> PIL.Image.Image:
    """The picture, if it has clear parts, over grey."""
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
