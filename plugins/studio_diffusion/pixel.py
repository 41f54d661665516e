"""Diffusion in pixels as pure pieces: the U-Net of a `DDPMPipeline` folder, and one denoising step on tensors.

Reads the stock layout (diffusers): `model_index.json unet/ scheduler/`. A `labels.json` beside them, a list of names,
says what the net's classes are; its last class then is "none", which guidance steers away from. Knows nothing of the
host; `ddpm.py` wraps it as a generator, and the trainer draws its sample grids by it.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import studio
from studio import devices
from studio.attention.routes import diffusers
from studio.devices.graphs import Graphs
from studio.errors import InputError, UnknownName, WeightsError
from studio.loaders import diffusers as loaders
from studio.loaders import read_config
from studio_diffusion.latent import attention_name
from studio_diffusion.layout import components, part, read_json, tensors_of
from studio_diffusion.noise import CLASSES, NoiseSchedule
from studio_diffusion.rows import chosen, column, guided_first, in_place, replaced
from studio_diffusion.samplers import CORRECTORS, PIXEL_SAMPLERS, Level, Move, Past

CLEAN = -1
"""The time of a clean picture, below all that the net knows; also of a step that there was not."""


@dataclass(frozen=True)
class Row:
    """One request in a batch.

    Attributes:
        x: (C, H, W) float32 at time `t`.
        label: the class told, or None for a net that is told none.
        guidance: scale of classifier-free guidance; 1 is none and costs half.
        sampler: a key of `PIXEL_SAMPLERS`.
        t, t_next: the times that the step goes from and to.
        past: of the last two steps, the latest first: (time, x0, x), each (C, H, W).
        noise: (C, H, W) standard normal numbers for a sampler that draws.
    """

    x: Tensor
    label: int | None
    guidance: float
    sampler: str
    t: int
    t_next: int
    past: tuple[tuple[int, Tensor, Tensor], ...] = ()
    noise: Tensor | None = None

    def on(self, t_next: int) -> Row:
        """The same row before its next step, which goes to `t_next`."""
        return replace(self, t=self.t_next, t_next=t_next)


class PixelDiffusion:
    """A U-Net on one device, with its noise schedule and its classes' names.

    Attributes:
        labels: the classes' names by number; empty for a net that is told none.
        none: the number of the class that stands for no label, if there is one.
    """

    def __init__(self, unet: Any, schedule: NoiseSchedule, labels: Sequence[str] | None) -> None:
        """Take a `UNet2DModel` as it is. `labels` are its classes but for the last, or None if nothing is known."""
        classes = unet.config.num_class_embeds or 0
        self.unet, self.schedule = unet, schedule
        self.labels = tuple(labels) if labels is not None else tuple(str(number) for number in range(classes))
        self.none = len(self.labels) if labels else None
        self.graphs: Graphs | None = None  # of a net that learns nothing any more

    @classmethod
    def load(cls, folder: Path, device: str, dtype: torch.dtype) -> PixelDiffusion:
        """Read a `DDPMPipeline` folder. Raises WeightsError for what is missing, damaged or unknown."""
        config = _unet_config(folder)
        schedule = _schedule(folder)
        unet = studio.module(
            partial(loaders.module, "UNet2DModel", part(folder, "unet")), tensors_of(part(folder, "unet")),
            rename=attention_name,
            device=device, dtype=dtype,
        )  # fmt: skip
        made = cls(unet, schedule, _labels(folder, config.get("num_class_embeds")))
        diffusers.use(unet)
        made.graphs = Graphs(device, unet)
        return made

    @property
    def device(self) -> torch.device:
        """Where the net is."""
        return torch.device(self.unet.device)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the pictures."""
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return int(self.unet.config.in_channels), int(height), int(width)

    def times(self, steps: int) -> tuple[int, ...]:
        """The times of a picture in `steps` steps, falling: `steps + 1`, the last that of a clean picture."""
        return (*self.schedule.timesteps(steps), CLEAN)

    def class_of(self, label: str) -> int | None:
        """The class of a label; an empty one means none. Raises InputError or UnknownName, which names the nearest."""
        if not self.labels:
            if label:
                raise InputError("of", f"the model knows no labels: `{label}` cannot be asked for", hint="leave it out")
            return None
        if not label and self.none is None:
            message = "the model draws nothing without a label"
            raise InputError("of", message, hint=f"give one of: {', '.join(self.labels[:20])}")
        if label and label not in self.labels:
            near = sorted(self.labels, key=lambda name: -difflib.SequenceMatcher(None, label, name).ratio())
            raise UnknownName("label", label, near)
        return self.labels.index(label) if label else self.none

    def here(self, x: Tensor) -> Tensor:
        """The tensor on the model's device."""
        return devices.upload(x, self.device)

    def step(self, rows: Sequence[Row]) -> list[Row]:
        """One denoising step for each row: the rows at `t_next`, their pasts longer by this step.

        Rows may differ in class, guidance, times and sampler. Guided rows take two places in the forward pass.
        """
        order = guided_first([self._guides(row) for row in rows])
        return in_place(order, self._step([rows[i] for i in order]))

    def _guides(self, row: Row) -> bool:
        return row.guidance > 1 and row.label not in (None, self.none)

    def _step(self, rows: Sequence[Row]) -> list[Row]:
        """The same of rows of which the guided ones come first."""
        x = torch.stack([self.here(row.x) for row in rows])  # (B, C, H, W)
        pasts = [[row.past[back] if len(row.past) > back else (CLEAN, row.x, row.x) for row in rows] for back in (0, 1)]
        now, after, *levels = self.levels(
            [row.t for row in rows], [row.t_next for row in rows], *([time for time, _, _ in past] for past in pasts)
        )
        before, earlier = (
            Past(
                level, torch.stack([self.here(x0) for _, x0, _ in past]), torch.stack([self.here(x) for *_, x in past])
            )
            for level, past in zip(levels, pasts, strict=True)
        )
        x0 = self.schedule.x0(x, self._say(rows, x), now)
        move = Move(
            x, x0, now, after, before, earlier, self._noise(rows, x), bound=self.schedule.clip,
            large_variance=self.schedule.large_variance,
        )  # fmt: skip
        for name in {row.sampler for row in rows} & set(CORRECTORS):
            mine = [i for i, row in enumerate(rows) if row.sampler == name]
            x = replaced(x, mine, chosen(CORRECTORS[name](move), mine))
        move = replace(move, x=x)
        moved = {name: PIXEL_SAMPLERS[name](move) for name in {row.sampler for row in rows}}
        return [  # clones: a row of a shared tensor would keep the whole batch alive
            replace(row, x=moved[row.sampler][i].clone(), past=((row.t, x0[i].clone(), x[i].clone()), *row.past[:1]),
                    noise=None)
            for i, row in enumerate(rows)
        ]  # fmt: skip

    def levels(self, *times: Sequence[int]) -> list[Level]:
        """The levels at lists of as many times each, one for each row."""
        level = self.schedule.level(torch.tensor(times).flatten())  # on the CPU, then all in one copy
        found = self.here(torch.stack([level.alpha, level.sigma]))  # (2, lists x B, 1, 1, 1)
        return [Level(*each.unbind()) for each in found.split(len(times[0]), 1)]

    def _say(self, rows: Sequence[Row], x: Tensor) -> Tensor:
        """What the net answers for each row, guided where asked: float32 (B, C, H, W)."""
        steered = [row for row in rows if self._guides(row)]
        told = [row.label or 0 for row in rows] + [self.none or 0] * len(steered)
        numbers = column(self.device, [row.t for row in (*rows, *steered)], told, [row.guidance for row in steered])
        work, sent = partial(self._answer, len(steered)), [x, numbers]
        return work(*sent) if self.graphs is None else self.graphs.run(len(steered), work, sent)

    def _answer(self, guided: int, x: Tensor, numbers: Tensor) -> Tensor:
        """The same, where the first rows are `guided`, from the `numbers` that `_say` sends."""
        count = len(x)
        t, label, scale = numbers.split([count + guided, count + guided, guided])
        labels = label.flatten().long() if self.labels else None
        wide = (torch.cat([x, x[:guided]]) if guided else x).to(self.unet.dtype)  # (B + G, C, H, W)
        said = self.unet(wide, t.flatten().long(), labels).sample.float()
        said, away = said[:count], said[count:]
        if not guided:
            return said
        steered = away + scale * (said[:guided] - away)
        return steered if guided == count else torch.cat([steered, said[guided:]])

    def _noise(self, rows: Sequence[Row], x: Tensor) -> Tensor | None:
        """The noise of each row (B, C, H, W), anything where its sampler draws none; None if none does."""
        drawn = [i for i, row in enumerate(rows) if row.noise is not None]
        if not drawn:
            return None
        return replaced(x, drawn, self.here(torch.stack([row.noise for row in rows if row.noise is not None])))

    def pictures(self, x: Tensor) -> Tensor:
        """Pictures of clean x (B, C, H, W) in [-1, 1]: uint8 (B, H, W, 3) on the CPU, or (B, H, W) of one channel."""
        made = studio.pixels(x.float().div(2).add(0.5)).permute(0, 2, 3, 1)
        return made if made.shape[-1] == 3 else made[..., 0]


def _unet_config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = read_json(part(folder, "unet") / "config.json", dict)
    kind = config.get("_class_name")
    if kind != "UNet2DModel":
        message = f"the net of `{folder}` is a `{kind}`; this draws with a `UNet2DModel`"
        raise WeightsError(folder, message, hint="name a folder in the layout of diffusers' DDPMPipeline")
    if not config.get("sample_size") or config.get("in_channels") not in (1, 3):
        found = f"sample_size {config.get('sample_size')} and in_channels {config.get('in_channels')}"
        raise WeightsError(folder, f"the net of `{folder}` has {found}; a picture has a size, and 1 or 3 channels",
                           hint="name a model of pictures")  # fmt: skip
    for name, known in (("out_channels", config["in_channels"]), ("class_embed_type", None)):
        if config.get(name, known) != known:
            raise WeightsError(folder, f"the net of `{folder}` has {name} {config[name]!r}; known is {known!r} only",
                               hint="name another model")  # fmt: skip
    return config


def _schedule(folder: Path) -> NoiseSchedule:
    """The folder's noise schedule. The class is that of `model_index.json`, as diffusers has it, if there is one."""
    path = part(folder, "scheduler") / "scheduler_config.json"
    config = read_config(path)
    kind = components(folder, ("unet", "scheduler")).get("scheduler", config.get("_class_name"))
    try:
        if config.get("_class_name", kind) != kind:
            raise ValueError(f"_class_name is {config['_class_name']!r}, and `model_index.json` says {kind!r}")
        kind = kind or CLASSES[0]
        return NoiseSchedule({**(loaders.config(kind, path) if kind in CLASSES else {}), "_class_name": kind})
    except (ValueError, TypeError, NotImplementedError) as error:
        raise WeightsError(path, f"`{path}` is of a kind that is not known: {error}",
                           hint="name a model with another noise schedule") from None  # fmt: skip


def _labels(folder: Path, classes: int | None) -> list[str] | None:
    """The names in the folder's `labels.json`, if it has one."""
    path = folder / "labels.json"
    if not path.exists():
        return None
    names: list[str] = read_json(path, list)
    if not all(isinstance(name, str) and name for name in names) or len(names) + 1 != (classes or 1):
        message = f"`{path}` names {len(names)} labels; the net has {classes or 0} classes, the last of them for none"
        raise WeightsError(path, message, hint="put the model's own labels.json there, or remove it")
    return names
