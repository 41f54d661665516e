"""Pixel diffusion without the host: the U-Net of a `DDPMPipeline` folder, and one denoising step on tensors.

Reads the diffusers layout: `model_index.json unet/ scheduler/`. An optional `labels.json`, a list of names, names the
U-Net's classes; the last class is then "none", for classifier-free guidance. `ddpm.py` wraps it as a generator; the
trainer uses it for sample grids.
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
from studio.diffusion.guidance import classifier_free_guidance
from studio.diffusion.layout import part, tensors_of
from studio.diffusion.noise import CLASSES, NoiseSchedule
from studio.diffusion.rows import column, guided_first, replace_rows, restore_order, select_rows
from studio.diffusion.samplers import CORRECTORS, PIXEL_SAMPLERS, History, Level, StepInputs
from studio.errors import InputError, UnknownName, WeightsError
from studio.loaders import diffusers as loaders
from studio.loaders import read_config
from studio_diffusion.latent import attention_name
from studio_diffusion.layout import components, read_json

CLEAN = -1
"""The timestep of a clean picture, below all of the schedule's; also that of a missing previous step."""


@dataclass(frozen=True)
class PixelRow:
    """One request in a batched denoising step.

    Attributes:
        x: (C, H, W) float32 at timestep `t`.
        label: the class, or None for an unconditional U-Net.
        guidance: guidance scale of classifier-free guidance; 1 is off and halves the work.
        sampler: a key of `PIXEL_SAMPLERS`.
        t, t_next: the timesteps that the step goes from and to.
        past: the last two steps, latest first: (timestep, x0, x), tensors (C, H, W).
        noise: (C, H, W) standard normal noise, for the sampler `ddpm`.
    """

    x: Tensor
    label: int | None
    guidance: float
    sampler: str
    t: int
    t_next: int
    past: tuple[tuple[int, Tensor, Tensor], ...] = ()
    noise: Tensor | None = None

    def advance(self, t_next: int) -> PixelRow:
        """The same row for its next step, which goes to `t_next`."""
        return replace(self, t=self.t_next, t_next=t_next)


class PixelDiffusion:
    """A U-Net on one device, with its noise schedule and the names of its classes.

    Attributes:
        labels: the class names by number; empty for an unconditional U-Net.
        none: the number of the class that means no label, if there is one.
    """

    def __init__(self, unet: Any, schedule: NoiseSchedule, labels: Sequence[str] | None) -> None:
        """Use a `UNet2DModel` as it is. `labels` are its classes except the last, or None if they are unknown."""
        classes = unet.config.num_class_embeds or 0
        self.unet, self.schedule = unet, schedule
        self.device, self.dtype = torch.device(unet.device), unet.dtype  # asking a net walks through all its modules
        self.labels = tuple(labels) if labels is not None else tuple(str(number) for number in range(classes))
        self.none = len(self.labels) if labels else None
        self.graphs: Graphs | None = None  # only where the weights are frozen

    @classmethod
    def load(cls, folder: Path, device: str, dtype: torch.dtype) -> PixelDiffusion:
        """Read a `DDPMPipeline` folder. Raises WeightsError if it is incomplete, damaged or unsupported."""
        config = _unet_config(folder)
        schedule = _schedule(folder)
        unet = studio.module(
            partial(loaders.module, "UNet2DModel", part(folder, "unet")), tensors_of(part(folder, "unet")),
            rename=attention_name,
            device=device, dtype=dtype,
        )  # fmt: skip
        made = cls(unet, schedule, _labels(folder, config.get("num_class_embeds")))
        made.device, made.dtype = torch.device(device), dtype  # streamed weights are elsewhere
        diffusers.use(unet)
        made.graphs = Graphs(device, unet)
        return made

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the pictures."""
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return int(self.unet.config.in_channels), int(height), int(width)

    def times(self, steps: int) -> tuple[int, ...]:
        """The timesteps of `steps` steps, falling: `steps + 1` numbers, of which the last is the clean picture's."""
        return (*self.schedule.timesteps(steps), CLEAN)

    def class_of(self, label: str) -> int | None:
        """The class of a label; an empty one means none. Raises InputError, or UnknownName with the nearest label."""
        if not self.labels:
            if label:
                raise InputError("of", f"`of` is `{label}`, but the model has no labels", hint="leave it out")
            return None
        if not label and self.none is None:
            message = "`of` is empty, but this model needs a label"
            raise InputError("of", message, hint=f"give one of: {', '.join(self.labels[:20])}")
        if label and label not in self.labels:
            near = sorted(self.labels, key=lambda name: -difflib.SequenceMatcher(None, label, name).ratio())
            raise UnknownName("label", label, near)
        return self.labels.index(label) if label else self.none

    def here(self, x: Tensor) -> Tensor:
        """The tensor on the model's device."""
        return devices.upload(x, self.device)

    def step(self, rows: Sequence[PixelRow]) -> list[PixelRow]:
        """One denoising step for each row: the rows at `t_next`, with this step added to their `past`.

        Rows may differ in class, guidance, timesteps and sampler. A guided row counts twice in the forward pass.
        """
        order = guided_first([self._is_guided(row) for row in rows])
        return restore_order(order, self._step([rows[i] for i in order]))

    def _is_guided(self, row: PixelRow) -> bool:
        return row.guidance > 1 and row.label not in (None, self.none)

    def _step(self, rows: Sequence[PixelRow]) -> list[PixelRow]:
        """The same for rows sorted with the guided ones first."""
        x = torch.stack([self.here(row.x) for row in rows])  # (B, C, H, W)
        pasts = [[row.past[back] if len(row.past) > back else (CLEAN, row.x, row.x) for row in rows] for back in (0, 1)]
        now, after, *levels = self.levels(
            [row.t for row in rows], [row.t_next for row in rows], *([time for time, _, _ in past] for past in pasts)
        )
        before, earlier = (
            History(
                level, torch.stack([self.here(x0) for _, x0, _ in past]), torch.stack([self.here(x) for *_, x in past])
            )
            for level, past in zip(levels, pasts, strict=True)
        )
        x0 = self.schedule.x0(x, self._predict(rows, x), now)
        inputs = StepInputs(
            x, x0, now, after, before, earlier, self._noise(rows, x), bound=self.schedule.clip,
            large_variance=self.schedule.large_variance,
        )  # fmt: skip
        for name in {row.sampler for row in rows} & set(CORRECTORS):
            mine = [i for i, row in enumerate(rows) if row.sampler == name]
            x = replace_rows(x, mine, select_rows(CORRECTORS[name](inputs), mine))
        inputs = replace(inputs, x=x)
        stepped = {name: PIXEL_SAMPLERS[name](inputs) for name in {row.sampler for row in rows}}
        return [  # clones: a view would keep the whole batch in memory
            replace(row, x=stepped[row.sampler][i].clone(), past=((row.t, x0[i].clone(), x[i].clone()), *row.past[:1]),
                    noise=None)
            for i, row in enumerate(rows)
        ]  # fmt: skip

    def levels(self, *times: Sequence[int]) -> list[Level]:
        """The noise levels for several lists of timesteps, each with one per row."""
        level = self.schedule.level(torch.tensor(times).flatten())  # on the CPU, then all in one copy
        found = self.here(torch.stack([level.alpha, level.sigma]))  # (2, lists x B, 1, 1, 1)
        return [Level(*each.unbind()) for each in found.split(len(times[0]), 1)]

    def _predict(self, rows: Sequence[PixelRow], x: Tensor) -> Tensor:
        """The U-Net's output for each row, guided where the row asks for it: float32 (B, C, H, W)."""
        guided = [row for row in rows if self._is_guided(row)]
        labels = [row.label or 0 for row in rows] + [self.none or 0] * len(guided)
        numbers = column(self.device, [row.t for row in (*rows, *guided)], labels, [row.guidance for row in guided])
        work, inputs = partial(self._forward, len(guided)), [x, numbers]
        return work(*inputs) if self.graphs is None else self.graphs.run(len(guided), work, inputs)

    def _forward(self, guided: int, x: Tensor, numbers: Tensor) -> Tensor:
        """The same, where the first `guided` rows are guided, from the `numbers` of `_predict`."""
        count = len(x)
        t, label, scale = numbers.split([count + guided, count + guided, guided])
        labels = label.flatten().long() if self.labels else None
        wide = (torch.cat([x, x[:guided]]) if guided else x).to(self.dtype)  # (B + G, C, H, W)
        output = self.unet(wide, t.flatten().long(), labels).sample.float()
        return classifier_free_guidance(output[:count], output[count:], scale)

    def _noise(self, rows: Sequence[PixelRow], x: Tensor) -> Tensor | None:
        """The noise of each row (B, C, H, W), arbitrary where its sampler uses none; None if no row has any."""
        drawn = [i for i, row in enumerate(rows) if row.noise is not None]
        if not drawn:
            return None
        return replace_rows(x, drawn, self.here(torch.stack([row.noise for row in rows if row.noise is not None])))

    def pictures(self, x: Tensor) -> Tensor:
        """Pictures of clean x (B, C, H, W) in [-1, 1]: uint8 (B, H, W, 3) on the CPU, or (B, H, W) of one channel."""
        made = studio.pixels(x.float().div(2).add(0.5)).permute(0, 2, 3, 1)
        return made if made.shape[-1] == 3 else made[..., 0]


def _unet_config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = read_json(part(folder, "unet") / "config.json", dict)
    kind = config.get("_class_name")
    if kind != "UNet2DModel":
        message = f"the U-Net of `{folder}` is a `{kind}`; it must be a `UNet2DModel`"
        raise WeightsError(folder, message, hint="use a folder in the layout of diffusers' DDPMPipeline")
    if not config.get("sample_size") or config.get("in_channels") not in (1, 3):
        found = f"sample_size {config.get('sample_size')} and in_channels {config.get('in_channels')}"
        raise WeightsError(folder, f"the U-Net of `{folder}` has {found}; it needs a sample_size, and 1 or 3 channels",
                           hint="use a model that generates pictures")  # fmt: skip
    for name, known in (("out_channels", config["in_channels"]), ("class_embed_type", None)):
        if config.get(name, known) != known:
            raise WeightsError(folder, f"the U-Net of `{folder}` has {name} {config[name]!r}; it must be {known!r}",
                               hint="use another model")  # fmt: skip
    return config


def _schedule(folder: Path) -> NoiseSchedule:
    """The folder's noise schedule; its class is that of `model_index.json` if there is one, as in diffusers."""
    path = part(folder, "scheduler") / "scheduler_config.json"
    config = read_config(path)
    kind = components(folder, ("unet", "scheduler")).get("scheduler", config.get("_class_name"))
    try:
        if config.get("_class_name", kind) != kind:
            raise ValueError(f"_class_name is {config['_class_name']!r}, and `model_index.json` says {kind!r}")
        kind = kind or CLASSES[0]
        return NoiseSchedule({**(loaders.config(kind, path) if kind in CLASSES else {}), "_class_name": kind})
    except (ValueError, TypeError, NotImplementedError) as error:
        raise WeightsError(path, f"the scheduler in `{path}` is not supported: {error}",
                           hint="use a model with another noise schedule") from None  # fmt: skip


def _labels(folder: Path, classes: int | None) -> list[str] | None:
    """The names in the folder's `labels.json`, if it has one."""
    path = folder / "labels.json"
    if not path.exists():
        return None
    names: list[str] = read_json(path, list)
    if not all(isinstance(name, str) and name for name in names) or len(names) + 1 != (classes or 1):
        message = f"`{path}` has {len(names)} labels; the U-Net has {classes or 0} classes, the last for no label"
        raise WeightsError(path, message, hint="replace it by the model's own labels.json, or remove it")
    return names
