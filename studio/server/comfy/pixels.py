"""Nodes that load, scale and mask pictures, computed while a graph is compiled.

Try it: ``pytest tests/studio/server/comfy/test_compile.py``
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from studio.media import Image
from studio.media.pictures import check_pixels
from studio.server.comfy.scene import Scene, wrong
from studio.server.comfy.values import Mask, Pixels, Size

if TYPE_CHECKING:
    import PIL.Image

METHODS = {
    "nearest-exact": "NEAREST",
    "bilinear": "BILINEAR",
    "area": "BOX",
    "bicubic": "BICUBIC",
    "lanczos": "LANCZOS",
}
"""Pillow's names of resampling methods."""
FACTOR = 8
"""Pixels of a latent's side, to multiples of which ComfyUI crops pictures."""


def load(scene: Scene, given: Mapping[str, Any]) -> tuple[Any, ...]:
    """Load an uploaded picture; its mask is where it is transparent."""
    image = scene.load(given["image"])
    opaque = Image(image.pil.convert("RGB"))
    return Pixels(image.size, opaque), Mask(_transparency(image))


def load_mask(scene: Scene, given: Mapping[str, Any]) -> tuple[Any, ...]:
    """Load one channel of an uploaded picture as a mask."""
    image = scene.load(given["image"])
    if given["channel"] == "alpha":
        return (Mask(_transparency(image)),)
    return (Mask(Image(image.pil.convert("RGB").getchannel(given["channel"][0].upper()))),)


def _transparency(image: Image) -> Image:
    """White where a picture is transparent."""
    import PIL.Image
    import PIL.ImageOps

    if image.mode != "RGBA":
        return Image(PIL.Image.new("L", image.size, 0))
    return Image(PIL.ImageOps.invert(image.pil.getchannel("A")))


def scale(scene: Scene, given: Mapping[str, Any]) -> tuple[Any, ...]:
    """Scale a picture; a width or height of 0 keeps its shape."""
    picture: Pixels = given["image"]
    width, height = given["width"], given["height"]
    if not width and not height:
        return (picture,)
    own = picture.size
    size = (width or max(1, round(own[0] * height / own[1])), height or max(1, round(own[1] * width / own[0])))
    if picture.image is None:
        if given["crop"] == "disabled" and size[0] * own[1] != size[1] * own[0]:
            raise wrong("A generated picture can be scaled only to its own shape, or with `crop` as `center`",
                        f"{own[0]}x{own[1]} to {size[0]}x{size[1]}", "crop")  # fmt: skip
        return (Pixels(size, None, picture.render),)
    check_pixels(size)
    scene.count(size)
    pil = _cropped(picture.image.pil, size) if given["crop"] == "center" else picture.image.pil
    import PIL.Image

    return (Pixels(size, Image(pil.resize(size, getattr(PIL.Image.Resampling, METHODS[given["upscale_method"]])))),)


def _cropped(pil: PIL.Image.Image, size: Size) -> PIL.Image.Image:
    """The middle of a picture in the shape of `size`, as ComfyUI's `common_upscale` cuts it."""
    x = y = 0
    old, new = pil.width / pil.height, size[0] / size[1]
    if old > new:
        x = round((pil.width - pil.width * (new / old)) / 2)
    elif old < new:
        y = round((pil.height - pil.height * (old / new)) / 2)
    return pil.crop((x, y, pil.width - x, pil.height - y))


def in_latents(image: Image) -> Image:
    """The middle of a picture whose sides are multiples of `FACTOR`, as VAEEncode of ComfyUI takes it."""
    left, top = (side % FACTOR // 2 for side in image.size)
    width, height = (side // FACTOR * FACTOR for side in image.size)
    if not width or not height:
        raise wrong("The picture is too small", f"{image.size[0]}x{image.size[1]}; the least is 8x8", "pixels")
    if (width, height) == image.size:
        return image
    return Image(image.pil.crop((left, top, left + width, top + height)))


def fitted(mask: Image, size: Size) -> Image:
    """A mask in the size of the picture."""
    import PIL.Image

    return mask if mask.size == size else Image(mask.pil.resize(size, PIL.Image.Resampling.BILINEAR))


def grown(mask: Image, by: int) -> Image:
    """A mask of black and white, as VAEEncodeForInpaint of ComfyUI makes it: each of its pixels becomes a square with
    sides of `by` pixels.
    """
    import numpy as np

    white = np.asarray(mask.pil.convert("L")) >= 128
    if by > 1:
        before = -(-(by - 1) // 2)
        for axis in (0, 1):
            pad = [(0, 0), (0, 0)]
            pad[axis] = (before, by - 1 - before)
            windows = np.lib.stride_tricks.sliding_window_view(np.pad(white, pad), by, axis)
            white = np.asarray(windows.any(-1))
    return Image.from_array(np.where(white, 255, 0).astype(np.uint8))


def blanked(image: Image, mask: Image) -> Image:
    """The picture with grey where the mask is white."""
    import PIL.Image

    hard = mask.pil.convert("L").point(lambda level: 255 if level >= 128 else 0)
    return Image(PIL.Image.composite(PIL.Image.new("RGB", image.size, (128, 128, 128)), image.pil.convert("RGB"), hard))
