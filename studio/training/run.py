"""A training run in a folder: stop it at any time (Ctrl-C, kill, power) and the same command goes on where it was.

The folder holds `run.safetensors` (weights, average, optimizer; step and seconds in its metadata), `log.csv` and
`curve.png`. A checkpoint is one file, replaced whole, so that its parts are always of one step. No pickle. Knows
nothing of what is trained.
"""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import safetensors.torch
import torch

from studio.training import curve
from studio.training.ema import Ema
from studio.training.peers import Peers


def replace(path: Path, data: bytes) -> None:
    """Write `data` to `path` by way of a file beside it, so that `path` is always whole.

    That file's name is fixed, unlike in `studio.files`: what a kill leaves of it is overwritten, not heaped up.
    """
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _apart(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous tensors, none of which is another: safetensors refuses tied weights, so each name has a copy."""
    seen: set[int] = set()
    made = {}
    for name, tensor in tensors.items():
        made[name] = tensor.clone() if tensor.data_ptr() in seen else tensor.contiguous()
        seen.add(tensor.data_ptr())
    return made


class Run:
    """One run's clock, checkpoint and log.

    Iterate over it for the step numbers: it ends after `steps` steps or `minutes` of training time (those of earlier
    sittings counted in), whichever comes first, and saves every `save_every` seconds, at the end and on Ctrl-C. A step
    left by `break` or an exception may be half made, so nothing is saved then: the last checkpoint stands.

    A resumed run has the weights, average, optimizer and counters of an unbroken one, not the state of its random
    numbers: a loop that draws each step's from `step` gives the same weights to the last bit.

    Several processes may share a run (see `Peers`): each calls `share` between backward and the optimizer's step, and
    the first alone writes files.

    Attributes:
        step: the step now being made, from 0.
        seconds: training time so far, in seconds, over all sittings.
    """

    def __init__(
        self,
        folder: Path,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        ema: Ema,
        *,
        steps: int,
        minutes: float = math.inf,
        save_every: float = 120.0,
        log_every: int = 50,
    ) -> None:
        """Take up the run in `folder` if there is one, else start it.

        Raises:
            ValueError: the folder's checkpoint is damaged or of a model of another shape; the message names it.
        """
        self.folder, self.model, self.optimizer, self.ema = folder, model, optimizer, ema
        self.steps, self.minutes, self.save_every, self.log_every = steps, minutes, save_every, log_every
        self.step, self.seconds = 0, 0.0
        self._sums: dict[str, float] = {}
        self._count = 0
        self._asked = self._stop = False
        self.peers = Peers()
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "run.safetensors").exists():
            self._restore()
        self._agreed = self._part(self.step)
        if self.peers.rank == 0:
            self._trim_log()

    def _part(self, step: int) -> float:
        return min(1.0, max(step / self.steps, self.seconds / 60 / self.minutes))

    @property
    def done(self) -> float:
        """The part of the run that is behind, in [0, 1]: by steps or by time, whichever is further."""
        return self._part(self.step) if self.peers.count == 1 else self._agreed

    def share(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Average the gradients over the run's processes, which also agree here on when to stop."""
        if self.peers.count == 1:
            return
        gradients = [each.grad for each in parameters if each.grad is not None]
        first = self._part(self.step + 1) if self.peers.rank == 0 else 0.0  # for when this step is over
        asked, self._agreed = self.peers.average(gradients, [float(self._asked), first])
        self._stop = asked > 0

    def rate(self, peak: float, warmup: int = 200, floor: float = 0.02) -> float:
        """Set and return the learning rate: linear over `warmup` steps, then a cosine from `peak` to `floor * peak`."""
        cosine = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * self.done))
        value = peak * min(1.0, (self.step + 1) / max(warmup, 1)) * cosine
        for group in self.optimizer.param_groups:
            group["lr"] = value
        return value

    def __iter__(self) -> Iterator[int]:
        """Yield step numbers; keep the clock, save on time, stop after the step in hand on Ctrl-C or SIGTERM."""
        handlers = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        saved = last = time.monotonic()
        try:
            while self.done < 1 and not self._stop:
                yield self.step
                self.step += 1
                if self.peers.count == 1:
                    self._stop = self._asked
                now = time.monotonic()
                self.seconds += now - last
                last = now
                if now - saved > self.save_every:
                    self.save()
                    saved = last = time.monotonic()
            self.save()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        if self._stop:
            print(f"stopped at step {self.step}; the same command goes on from there", file=sys.stderr)
            raise KeyboardInterrupt

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def log(self, **values: float | torch.Tensor) -> None:
        """Add a step's values; every `log_every` steps their means go to `log.csv` and to standard error with the time
        left.
        """
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)
        self._count += 1
        if self.peers.rank or self._count < self.log_every:
            return
        means = {name: total / self._count for name, total in self._sums.items()}
        self._sums, self._count = {}, 0
        left = self.seconds * (1 - self.done) / max(self.done, 1e-9)
        text = " ".join(f"{name} {value:.4g}" for name, value in means.items())
        print(f"step {self.step} {text} · {self.done:.1%}, {left / 60:.0f} min left", file=sys.stderr, flush=True)
        path = self.folder / "log.csv"
        new = not path.exists() or not path.stat().st_size
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["step", "seconds", *means])
            writer.writerow([self.step, round(self.seconds, 1), *(f"{value:.6g}" for value in means.values())])

    def save(self) -> None:
        """Write the checkpoint, all in one safetensors file, and draw the curve. The first process alone does."""
        if self.peers.rank:
            return
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.module.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": torch.as_tensor(v) for k, v in state.items()}
        counters = {"step": self.step, "seconds": self.seconds, "updates": self.ema.updates}
        data = safetensors.torch.save(_apart(tensors), {"counters": json.dumps(counters)})
        replace(self.folder / "run.safetensors", data)
        if picture := curve.png(self.folder / "log.csv"):
            replace(self.folder / "curve.png", picture)

    def _restore(self) -> None:
        path = self.folder / "run.safetensors"
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                counters = json.loads((file.metadata() or {})["counters"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (safetensors.SafetensorError, KeyError) as error:
            raise ValueError(f"{path} is no checkpoint or a damaged one: remove it to begin anew") from error

        def part(prefix: str) -> dict[str, torch.Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        try:
            self.model.load_state_dict(part("model."))
            self.ema.module.load_state_dict(part("ema."))
            self.ema.updates = counters["updates"]
        except RuntimeError as error:
            raise ValueError(f"{path} is of a model of another shape: use another folder or remove it") from error
        state: dict[int, dict[str, Any]] = {}
        for name, value in part("optimizer.").items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = value
        if state:
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.step, self.seconds = counters["step"], counters["seconds"]
        print(f"going on from step {self.step} of {path}", file=sys.stderr)

    def _trim_log(self) -> None:
        """Drop rows of steps that the checkpoint does not hold (they are made again) and a row cut short."""
        path = self.folder / "log.csv"
        if not path.exists():
            return
        data = path.read_bytes()
        header, *rows = list(csv.reader(data.decode().splitlines())) or [[]]
        kept = [row for row in rows if len(row) == len(header) and row[0].isdecimal() and int(row[0]) < self.step]
        trimmed = "".join(",".join(row) + "\r\n" for row in [header, *kept] if row).encode()
        if trimmed != data:
            replace(path, trimmed)
