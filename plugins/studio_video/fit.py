"""Conditioning frames: pictures and the end of a clip, fitted to the size of the video, with their positions in it.

Loads no torch.

Try it: `fit_to(picture, (128, 96), "crop")`
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from studio.media import pictures

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    from numpy.typing import NDArray

WAYS = ("letterbox", "crop")


@dataclass(frozen=True)
class ConditioningFrames:
    """The conditioning frames of a request.

    Attributes:
        frames: uint8 (H, W, 3) by index among the latent frames.
        before, after: uint8 (n, H, W, 3), copied to the beginning and the end of the video.
        hidden: latent frames at the beginning that repeat some of `before`, and are not shown again.
        notices: changes to the frames, for the user.
    """

    frames: dict[int, NDArray[np.uint8]]
    before: NDArray[np.uint8]
    after: NDArray[np.uint8]
    hidden: int = 0
    notices: tuple[str, ...] = field(default=())


def fit_to(picture: PIL.Image.Image, size: tuple[int, int], way: str) -> NDArray[np.uint8]:
    """The picture scaled to a size, uint8 (H, W, 3); padded with white, or cropped to the centre."""
    import numpy as np
    import PIL.Image
    import PIL.ImageOps

    rgb, smooth = pictures.on_white(picture), PIL.Image.Resampling.LANCZOS
    if way == "crop":
        return np.asarray(PIL.ImageOps.fit(rgb, size, smooth))
    return np.asarray(PIL.ImageOps.pad(rgb, size, smooth, color=(255, 255, 255)))


def as_pil(pixels: Any) -> PIL.Image.Image:
    """A PIL picture of pixels, uint8 (H, W, 3)."""
    import numpy as np
    import PIL.Image

    return PIL.Image.fromarray(np.asarray(pixels))


def conditioning_frames(inputs: Any, memory: int) -> ConditioningFrames:
    """The conditioning frames of these inputs; of a clip to extend, the last `memory` frames."""
    import numpy as np

    size = inputs.sides
    none = np.zeros((0, size[1], size[0], 3), np.uint8)
    notices = tuple(_notices(inputs))
    if inputs.extend:
        import PIL.Image

        old = np.stack([fit_to(PIL.Image.fromarray(f), size, inputs.fit) for f in inputs.extend.frames])
        shown = old[-memory:]
        return ConditioningFrames(dict(enumerate(shown)), old, none, len(shown), notices)
    first = fit_to(inputs.image.pil, size, inputs.fit) if inputs.image else None
    last = fit_to(inputs.to.pil, size, inputs.fit) if inputs.to else first if inputs.loop else None
    end = inputs.frames - 1 + inputs.loop
    frames = {at: pixels for at, pixels in ((0, first), (end, last)) if pixels is not None}
    return ConditioningFrames(
        frames, none if first is None else first[None], none if inputs.to is None or last is None else last[None],
        notices=notices,
    )  # fmt: skip


def _notices(inputs: Any) -> Iterator[str]:
    """Notices on how media were fitted."""
    width, height = inputs.sides
    for name in ("image", "to", "extend"):
        media = getattr(inputs, name)
        if media is None:
            continue
        w, h = media.size if name != "extend" else media.frames.shape[2:0:-1]
        if w * height != h * width:
            how = "it was padded with white" if inputs.fit == "letterbox" else "it was cropped"
            yield f"`{name}` is {w}x{h}, the video {width}x{height}: {how}"
    if inputs.extend and inputs.extend.fps != inputs.fps:
        yield f"`fps` is ignored: the video keeps the {inputs.extend.fps:g} frames per second of the clip"
