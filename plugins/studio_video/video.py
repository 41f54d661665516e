"""The generator `video`: text, or a picture, or a clip, to a clip, on the starter weights that ship with the plugin.

What is given (a first picture, a last one, the end of a clip) stands in the latents as frames without noise; the rest
is denoised around it. Importing this loads no torch; `load` does.

Try it: ``studio video "a dog bouncing" -o dog.mp4``
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import ValidationInfo, field_validator, model_validator

import studio
from studio import models
from studio.errors import WeightsError
from studio_diffusion.image import STARTER as PICTURES
from studio_video import fit

if TYPE_CHECKING:
    from torch import Tensor

    from studio_video.latent import LatentVideo
    from studio_video.model import Views

WEIGHTS = Path(__file__).parent / "weights"
SHARED = ("tokenizer", "text_encoder", "vae")
SMALLEST, LARGEST, MULTIPLE, MOST_FRAMES = 64, 256, 16, 1024
WINDOW, OVERLAP = 48, 16
"""Frames of a pass, and how many of them two neighbours share, where a clip is longer than a pass."""
MEMORY = 4
"""Frames of a clip that are shown to the net to go on from."""
_SIZE = re.compile(r"(\d{1,5})\s*[x×*]\s*(\d{1,5})")


@dataclass(frozen=True, kw_only=True, eq=False)
class Denoising(studio.State):
    """A clip on its way out of noise.

    Attributes:
        x: (T, C, h, w) float32 latents, clean at the frames that are `given` (T,).
        x0_before: the clean latents as seen at the step before, or None at the first.
        times: (T,) the part of the movement that is over at each frame.
        text, negative: (n, W) token states of the prompt and of what to keep away from.
        levels: noise levels, `steps + 1` numbers falling to 0.
        before, after: uint8 (n, H, W, 3), frames that are kept as they are at the beginning and the end.
        hidden: frames of `x` at its beginning that stand for some of `before`.
        attention: the kind of `Views`.
    """

    x: Tensor
    x0_before: Tensor | None
    times: Tensor
    given: Tensor
    text: Tensor
    negative: Tensor
    levels: tuple[float, ...]
    guidance: float
    sampler: str
    fps: float
    loop: bool
    attention: str
    before: Tensor
    after: Tensor
    hidden: int


class VideoGenerator(studio.Generator):
    """Make a short video from a text, from a picture, or from a clip to go on with."""

    name = "video"
    output = studio.Video
    max_batch: ClassVar[int] = 8
    streams: ClassVar[bool] = True

    class Inputs(studio.Inputs):
        """What `studio video` asks for."""

        prompt: str = studio.field(help="what to show and how it moves, in English", min_length=1, max_length=2000)
        negative: str = studio.field("", help="what to keep away from", max_length=2000)
        fps: float = studio.field(12, ge=1, le=60, help="frames a second")
        size: str = studio.field(
            "128x128", help=f"WIDTHxHEIGHT in pixels, each a multiple of {MULTIPLE} from {SMALLEST} to {LARGEST}"
        )
        frames: int = studio.field(16, ge=1, le=MOST_FRAMES, help="how many frames to make")
        image: studio.Image | None = studio.field(None, help="a picture to begin with; it is the first frame")
        to: studio.Image | None = studio.field(None, help="a picture to end with; it is the last frame")
        extend: studio.Video | None = studio.field(None, help="a clip to go on with; the frames are added to it")
        fit: str = studio.field(
            "letterbox", choices=fit.WAYS, help="what to do with a picture or clip of another aspect ratio"
        )
        loop: bool = studio.field(False, help="let the end meet the beginning")
        model: str = studio.field("", help="a folder that `studio train video` wrote, or a pulled one", max_length=4000)
        steps: int = studio.field(20, ge=1, le=1000, help="denoising steps; more are slower and finer")
        guidance: float = studio.field(
            4.0, ge=1, le=30, help="how closely to follow the prompt; 1 is off and twice as fast"
        )
        sampler: str = studio.field(
            "dpmpp-2m", choices=("dpmpp-2m", "euler"), help="how to go from one noise level to the next"
        )
        attention: str = studio.field(
            "full", choices=("full", "window", "factorised"),
            help="which patches see each other: all of the clip, those near in space and time, or those of one frame "
            "and of one place by turns",
        )  # fmt: skip

        @field_validator("prompt")
        @classmethod
        def _not_blank(cls, value: str) -> str:
            if not value.strip():
                raise ValueError("is empty: say what to show")
            return value

        @field_validator("size")
        @classmethod
        def _parse_size(cls, value: str) -> str:
            match = _SIZE.fullmatch(value.strip())
            sides = [int(side) for side in match.groups()] if match else []
            if not sides or any(side % MULTIPLE or not SMALLEST <= side <= LARGEST for side in sides):
                raise ValueError(f"must be WIDTHxHEIGHT, each a multiple of {MULTIPLE} from {SMALLEST} to {LARGEST}")
            return f"{sides[0]}x{sides[1]}"

        @field_validator("frames", mode="before")
        @classmethod
        def _not_endless(cls, value: Any, info: ValidationInfo) -> Any:
            if isinstance(value, int) and value > MOST_FRAMES:
                size = info.data.get("size", "128x128")
                takes = _memory(value, *(int(side) for side in size.split("x")))
                raise ValueError(f"must be from 1 to {MOST_FRAMES}; so many of {size} would take {takes}")
            return value

        @model_validator(mode="after")
        def _fits(self) -> Self:
            if self.extend and (self.image or self.to or self.loop):
                raise ValueError("`extend` goes on with a clip: leave out `image`, `to` and `loop`")
            if self.to and self.loop:
                raise ValueError("`loop` ends where it begins: leave out `to`, or `loop`")
            kept = bool(self.image) + bool(self.to)
            if self.frames <= max(kept, int(self.loop)):
                raise ValueError(f"`frames` is {self.frames}: with `image`, `to` or `loop` there must be more to make")
            return self

        @property
        def sides(self) -> tuple[int, int]:
            """Width and height in pixels."""
            width, height = self.size.split("x")
            return int(width), int(height)

    def __init__(self, folder: Path = WEIGHTS, shared: Path = PICTURES) -> None:
        """Use the net of `folder`, and text tower and VAE of the image model in `shared`."""
        self.folder, self.shared = folder, shared
        self._others: dict[Path, VideoGenerator] = {}

    def serving(self, inputs: Any) -> VideoGenerator:
        """The generator with the model that the inputs name."""
        if not inputs.model:
            return self
        path = models.path(inputs.model).absolute()
        if path not in self._others:
            self._others[path] = type(self)(path, self.shared)
        return self._others[path]

    def weights(self) -> list[Path]:
        """The safetensors of the net and of what it shares. Raises WeightsError if anything is missing."""
        for part in (self.folder / "config.json", *(self.shared / name for name in SHARED)):
            if not part.exists():
                reason = f"`{self.folder}` is no video model: `{part}` is missing"
                hint = "train one with `studio train video`, and name it: `--model training/video/model`"
                raise WeightsError(part, reason, hint=hint)
        shared = [file for name in SHARED for file in (self.shared / name).glob("*.safetensors")]
        return [*sorted(self.folder.glob("*.safetensors")), *sorted(shared)]

    def dtype_for(self, device: str) -> str:
        """bfloat16 where the hardware multiplies it, else float32."""
        import torch

        if device.startswith("cuda"):
            return "bfloat16"
        return "bfloat16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32"

    def load(self, device: str, dtype: str) -> LatentVideo:
        """Build text tower, net and VAE."""
        import torch

        from studio_video.latent import LatentVideo

        return LatentVideo(self.folder, self.shared, device, getattr(torch, dtype))

    def start(self, model: LatentVideo, inputs: Any, rng: studio.Rng) -> Denoising:
        """Encode the texts and what is given, and draw the noise."""
        import torch

        from studio_diffusion.samplers import noise_levels

        given = fit.given(inputs, MEMORY)
        frames = inputs.frames + given.hidden + inputs.loop
        x = torch.randn(model.latent_shape(frames, *inputs.sides), generator=rng.torch)
        if inputs.loop:
            x[-1] = x[0]
        still = torch.zeros(frames, dtype=torch.bool)
        for at, pixels in given.frames.items():
            still[at] = True
            x[at] = model.encode(pixels[None])[0]
        text, negative = model.texts([inputs.prompt, inputs.negative])
        fps = inputs.extend.fps if inputs.extend else inputs.fps
        before, after = (torch.from_numpy(each.copy()) for each in (given.before, given.after))
        return Denoising(
            steps=inputs.steps, notices=(*given.notices, *model.texts.cut(inputs.prompt, "prompt"),
                                         *model.texts.cut(inputs.negative, "negative prompt")),
            x=x, x0_before=None, times=torch.linspace(0, 1, frames) if frames > 1 else torch.tensor([0.5]),
            given=still, text=text, negative=negative, levels=noise_levels(inputs.steps, _shift(frames)),
            guidance=inputs.guidance, sampler=inputs.sampler, fps=fps, loop=inputs.loop, attention=inputs.attention,
            before=before, after=after, hidden=given.hidden,
        )  # fmt: skip

    def step(self, model: LatentVideo, states: Sequence[Denoising]) -> list[Denoising]:
        """One denoising step for all states together, as one packed row."""
        from studio_video.latent import Row

        rows = [
            Row(x=a.x, x0_before=a.x0_before, times=a.times, given=a.given, text=a.text, negative=a.negative,
                guidance=a.guidance, s=a.levels[a.position], s_next=a.levels[a.position + 1],
                s_before=a.levels[a.position - 1] if a.position else 0.0, sampler=a.sampler, loop=a.loop,
                windows=windows(len(a.x)))
            for a in states
        ]  # fmt: skip
        moved = model.step(rows, _views(states[0]))
        return [
            replace(a, position=a.position + 1, x=x.cpu(), x0_before=x0.cpu())
            for a, (x, x0) in zip(states, moved, strict=True)
        ]

    def finish(self, model: LatentVideo, state: Denoising) -> studio.Video:
        """Decode the latents, and put what was given in its place."""
        import numpy as np

        last = len(state.x) - state.loop - len(state.after)
        made = model.decode(state.x[state.hidden or len(state.before) : last]).numpy()
        return studio.Video(np.concatenate([state.before.numpy(), made, state.after.numpy()]), state.fps)

    def preview(self, model: LatentVideo, state: Denoising) -> studio.Image | None:
        """The frame half-way, as the model now takes it to be."""
        if state.x0_before is None:
            return None
        middle = len(state.x0_before) // 2
        return studio.Image.from_array(model.decode(state.x0_before[middle : middle + 1])[0].numpy())

    def batch_key(self, state: Denoising) -> Hashable:
        """Clips of any shapes share a step, if they see alike and their sizes are within a factor of two.

        What a step takes is learned for a key and a width: clips of very unlike sizes would tell nothing of each other.
        """
        frames, _, height, width = state.x.shape
        return self.folder, state.attention, (frames * height * width).bit_length()

    def facts(self, model: LatentVideo, inputs: Any) -> dict[str, Any]:
        """The noise schedule, the sampler, and which patches saw each other."""
        shift = _shift(inputs.frames)
        return {
            "noise_schedule": {"kind": "rectified flow", "shift": shift, "steps": inputs.steps},
            "sampler": inputs.sampler, "views": inputs.attention,
        }  # fmt: skip


def windows(frames: int) -> tuple[tuple[int, int], ...]:
    """The passes of a clip: (first, last + 1) of each, evenly spread, neighbours sharing `OVERLAP` frames or more."""
    if frames <= WINDOW:
        return ((0, frames),)
    count = -(-(frames - OVERLAP) // (WINDOW - OVERLAP))
    starts = [round(i * (frames - WINDOW) / (count - 1)) for i in range(count)]
    return tuple((start, start + WINDOW) for start in starts)


def _shift(frames: int) -> float:
    """Frames tell of one another, so a clip needs more steps at high noise than a picture (Esser et al. 2024)."""
    return 1.0 if frames == 1 else 2.0


def _views(state: Denoising) -> Views:
    from studio_video.model import Views

    return Views(state.attention)


def _memory(frames: int, width: int, height: int) -> str:
    """What the pixels of so many frames take, in words."""
    return f"{frames * width * height * 3 / 2**30:.1f} GiB for their pixels alone"
