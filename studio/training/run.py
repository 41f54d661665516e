"""A training run in a folder: stop it at any time (Ctrl-C, kill, power) and the same command goes on where it was.

The folder holds `run.safetensors` (weights, average, optimizer), `run.json` (step, seconds), `log.csv` and
`curve.png`. Files are replaced whole, never written in place. No pickle. Knows nothing of what is trained.
"""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import safetensors.torch
import torch

from studio.training.ema import Ema


def replace(path: Path, data: bytes) -> None:
    """Write `data` to `path` by way of a file beside it, so that `path` is always whole."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(data)
    os.replace(part, path)


class Run:
    """One run's clock, checkpoint and log.

    Iterate over it for the step numbers: it ends after `steps` steps or `minutes` of training time (those of earlier
    sittings counted in), whichever comes first, and saves every `save_every` seconds, at the end and on Ctrl-C.

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
            ValueError: the folder's checkpoint is of a model of another shape.
        """
        self.folder, self.model, self.optimizer, self.ema = folder, model, optimizer, ema
        self.steps, self.minutes, self.save_every, self.log_every = steps, minutes, save_every, log_every
        self.step, self.seconds = 0, 0.0
        self._sums: dict[str, float] = {}
        self._count = 0
        self._stop = False
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "run.json").exists():
            self._restore()

    @property
    def done(self) -> float:
        """The part of the run that is behind, in [0, 1]: by steps or by time, whichever is further."""
        return min(1.0, max(self.step / self.steps, self.seconds / 60 / self.minutes))

    def rate(self, peak: float, warmup: int = 200, floor: float = 0.02) -> float:
        """Set and return the learning rate: linear over `warmup` steps, then a cosine from `peak` to `floor * peak`."""
        cosine = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * self.done))
        value = peak * min(1.0, (self.step + 1) / warmup) * cosine
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
                now = time.monotonic()
                self.seconds += now - last
                last = now
                if now - saved > self.save_every:
                    self.save()
                    saved = last = time.monotonic()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self.save()
        if self._stop:
            print(f"stopped at step {self.step}; the same command goes on from there", file=sys.stderr)
            raise KeyboardInterrupt

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stop = True

    def log(self, **values: float | torch.Tensor) -> None:
        """Add a step's values; every `log_every` steps their means go to `log.csv` and to standard error with the time
        left.
        """
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)
        self._count += 1
        if self._count < self.log_every:
            return
        means = {name: total / self._count for name, total in self._sums.items()}
        self._sums, self._count = {}, 0
        left = self.seconds * (1 - self.done) / max(self.done, 1e-9)
        text = " ".join(f"{name} {value:.4g}" for name, value in means.items())
        print(f"step {self.step} {text} · {self.done:.1%}, {left / 60:.0f} min left", file=sys.stderr, flush=True)
        path = self.folder / "log.csv"
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["step", "seconds", *means])
            writer.writerow([self.step, round(self.seconds, 1), *(f"{value:.6g}" for value in means.values())])

    def save(self) -> None:
        """Write the checkpoint: weights, average and optimizer in one safetensors file, then the counters."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.module.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": torch.as_tensor(v) for k, v in state.items()}
        counters = {"step": self.step, "seconds": self.seconds, "updates": self.ema.updates}
        data = safetensors.torch.save(
            {k: v.contiguous() for k, v in tensors.items()}, {"counters": json.dumps(counters)}
        )
        replace(self.folder / "run.safetensors", data)
        replace(self.folder / "run.json", json.dumps(counters).encode())

    def _restore(self) -> None:
        path = self.folder / "run.safetensors"
        with safetensors.safe_open(path, framework="pt") as file:
            counters = json.loads(file.metadata()["counters"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)

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
