"""A resumable training run in a folder: after Ctrl-C, a kill or a crash the same command resumes it.

The folder has `run.safetensors` (weights, EMA, optimizer; step and seconds in its metadata), `run.json` (settings, see
`agreement`), `log.csv`, `curve.png` and `run.lock`, which is locked while a process trains there. The checkpoint is one
file, replaced atomically, so that its parts are of one step. No pickle.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import signal
import sys
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import safetensors.torch
import torch

from studio.errors import StudioError, WeightsError
from studio.files import check_regular, make_folder, store_error, write_atomically
from studio.generator import Rng
from studio.locks import try_lock
from studio.temporary import OLD_NAMES, sweep
from studio.training import curve
from studio.training.agreement import agree
from studio.training.ema import Ema
from studio.training.peers import Peers

CHECKPOINT, LOCK = "run.safetensors", "run.lock"
FIRST_SAVE_S = 5.0
REPORT_EVERY_S = 10.0
DRAW_AFTER_S = 60.0  # earlier checkpoints draw no curve: loading matplotlib would take longer than the training so far


def _untied(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous tensors, with tied weights copied, since safetensors rejects them."""
    seen: set[int] = set()
    made = {}
    for name, tensor in tensors.items():
        made[name] = tensor.clone() if tensor.data_ptr() in seen else tensor.contiguous()
        seen.add(tensor.data_ptr())
    return made


_START_OVER = "choose another `--work`, or remove the file to start over"


def _span(seconds: float) -> str:
    """A duration for display."""
    return f"{seconds / 60:.0f} min" if seconds >= 100 else f"{max(seconds, 0):.0f} s"


class Run:
    """The clock, checkpoint and log of one run.

    Iterating yields step numbers until `steps` steps or `minutes` of training time (including earlier sessions) are
    reached. It saves every `save_every` seconds, more often in the first minutes, at the end, and on Ctrl-C. A step
    left by `break` or an exception may be incomplete, so nothing is saved then. A loss or weight that is not finite
    ends the run with an error, and is never saved.

    A resumed run has the weights, EMA, optimizer and counters of an uninterrupted one, but not the state of random
    number
    generators: a loop that seeds them from `step` gives bitwise equal weights.

    Several processes may share a run (see `Peers`): each calls `share` between backward and the optimizer's step, and
    only the first writes files.

    Attributes:
        step: the current step, from 0.
        seconds: training time so far, over all sessions.
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
        fixed: Mapping[str, Any] | None = None,
        changeable: Mapping[str, Any] | None = None,
    ) -> None:
        """Resume the run in `folder` if there is one, else start it.

        Args:
            fixed, changeable: the settings of the run, see `agreement.agree`.

        Raises:
            WeightsError: the checkpoint is damaged or does not fit the model.
            StudioError: another process trains in the folder, or the run there has other fixed settings.
            StoreError: the folder cannot be written to.
        """
        self.folder, self.model, self.optimizer, self.ema = folder, model, optimizer, ema
        self.steps, self.minutes, self.save_every, self.log_every = steps, minutes, save_every, log_every
        self.step, self.seconds = 0, 0.0
        self._sums: dict[str, float | torch.Tensor] = {}
        self._count = 0
        self._asked = self._stop = self._told = False
        self._reported = -math.inf
        self._lock: weakref.finalize[..., Run] | None = None
        self.peers = Peers()
        make_folder(folder)
        if self.peers.rank == 0:
            self._hold()
            sweep(folder, OLD_NAMES)
            if fixed or changeable:
                agree(folder, fixed or {}, changeable, begun=(folder / CHECKPOINT).exists())
        if (folder / CHECKPOINT).exists():
            self._restore()
        self._agreed = self._part(self.step)
        if self.peers.rank == 0:
            self._trim_log()

    def _hold(self) -> None:
        """Lock the folder until the run ends. Raises StudioError if another process holds the lock."""
        if self.peers.rank or (self._lock is not None and self._lock.alive):
            return
        path = self.folder / LOCK
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            if try_lock(descriptor, without=True):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, str(os.getpid()).encode())
                self._lock = weakref.finalize(self, os.close, descriptor)
                return
            other = os.read(descriptor, 20).decode("ascii", "replace")
            os.close(descriptor)
        except OSError as error:
            raise store_error(path, "write", error) from error
        raise StudioError(
            f"process {other or 'unknown'} is training in `{self.folder}`",
            hint="wait for it, stop it, or choose another `--work`",
        )

    def _part(self, step: int) -> float:
        return min(1.0, max(step / self.steps, self.seconds / 60 / self.minutes))

    @property
    def done(self) -> float:
        """The completed fraction of the run, by steps or time, whichever is larger."""
        return self._part(self.step) if self.peers.count == 1 else self._agreed

    def noise(self, seed: int) -> torch.Generator:
        """A random number generator, different for each seed, step and process."""
        return Rng(seed).fork(f"{self.step}/{self.peers.rank}").torch

    def share(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Average the gradients over the run's processes, which also agree on when to stop."""
        if self.peers.count == 1:
            return
        gradients = [each.grad for each in parameters if each.grad is not None]
        first = self._part(self.step + 1) if self.peers.rank == 0 else 0.0  # after this step
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
        """Yield step numbers; count time, autosave, and stop after the current step on Ctrl-C or SIGTERM."""
        self._hold()
        handlers = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        saved = last = time.monotonic()
        gap = self._gap()
        self._report_start()
        try:
            while self.done < 1 and not self._stop:
                yield self.step
                self.step += 1
                if self.peers.count == 1:
                    self._stop = self._asked
                now = time.monotonic()
                self.seconds += now - last
                last = now
                if now - saved > gap:
                    self.save(draw=self.seconds > DRAW_AFTER_S)
                    saved = last = time.monotonic()
                    gap = self._gap()
            self.save()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            if self._lock is not None:
                self._lock()
        if self._stop:
            print(f"stopped at step {self.step}; run the same command to resume", file=sys.stderr)
            raise KeyboardInterrupt

    def _gap(self) -> float:
        """Seconds to the next checkpoint: few at first, so that an early kill loses little."""
        return min(self.save_every, FIRST_SAVE_S + self.seconds / 2)

    def _report_start(self) -> None:
        """Print what runs and the time limit."""
        if self.peers.rank or self.done >= 1:
            return
        limit = f"at most {_span(60 * self.minutes - self.seconds)}" if math.isfinite(self.minutes) else "no time limit"
        print(f"training in {self.folder}: step {self.step:,} of {self.steps:,}, {limit}", file=sys.stderr, flush=True)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def log(self, **values: float | torch.Tensor) -> None:
        """Add a step's values. Every `log_every` steps their means go to `log.csv` and, with the time left, to standard
        error; also after the first step, and every ten seconds if steps are slow.

        Values on a GPU are summed there and read only with the mean, since reading waits for the device.

        Raises:
            StudioError: a value is not finite. Existing checkpoints and models do not change.
        """
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.device.type != "cpu":
                self._sums[name] = self._sums.get(name, 0.0) + value.detach().float()
            else:
                self._sums[name] = self._sums.get(name, 0.0) + self._finite(name, value)
        self._count += 1
        now, row = time.monotonic(), self._count >= self.log_every
        if not (row or now - self._reported >= REPORT_EVERY_S):
            return
        means = {name: self._finite(name, total) / self._count for name, total in self._sums.items()}
        if self.peers.rank:
            self._sums, self._count, self._reported = {}, 0, now
            return
        left = self.seconds * (1 - self.done) / max(self.done, 1e-9)
        text = " ".join(f"{name} {value:.4g}" for name, value in means.items())
        ahead = f"{self.done:.1%}, {_span(left)} left" if self.seconds else f"{self.done:.1%}"
        print(f"step {self.step} {text} · {ahead}", file=sys.stderr, flush=True)
        self._reported = now
        if row:
            self._sums, self._count = {}, 0
            self._write_row(means)

    def _finite(self, name: str, value: float | torch.Tensor) -> float:
        number = float(value.detach() if isinstance(value, torch.Tensor) else value)
        if not math.isfinite(number):
            raise self._not_finite(f"`{name}` is {number}")
        return number

    def _write_row(self, means: Mapping[str, float]) -> None:
        path, text = self.folder / "log.csv", io.StringIO(newline="")
        writer = csv.writer(text)
        try:
            if not path.exists() or not path.stat().st_size:
                writer.writerow(["step", "seconds", *means])
            writer.writerow([self.step, round(self.seconds, 1), *(f"{value:.6g}" for value in means.values())])
            with path.open("a", newline="") as file:
                file.write(text.getvalue())
        except OSError as error:
            raise store_error(path, "write", error) from error

    def _not_finite(self, what: str) -> StudioError:
        return StudioError(
            f"{what} at step {self.step}; training stopped, and the checkpoint in `{self.folder}` is unchanged",
            hint="resume with a lower `--rate`, or start over with another `--work`",
        )

    def save(self, *, draw: bool = True) -> None:
        """Write the checkpoint, one safetensors file, and with `draw` the loss curve. Only the first process does.

        Raises:
            StudioError: a weight is not finite; the previous checkpoint is unchanged.
            StoreError: it cannot be written, for instance on a full disk; the previous checkpoint is unchanged.
        """
        if self.peers.rank:
            return
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.module.state_dict().items()}
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise self._not_finite(f"the weights `{name}` are not finite")
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": torch.as_tensor(v) for k, v in state.items()}
        counters = {"step": self.step, "seconds": self.seconds, "updates": self.ema.updates}
        data = safetensors.torch.save(_untied(tensors), {"counters": json.dumps(counters)})
        write_atomically(self.folder / CHECKPOINT, data)
        if draw:
            self._draw()

    def _draw(self) -> None:
        """Draw the loss curve if the log has a row; without matplotlib, say so once."""
        try:
            if picture := curve.png(self.folder / "log.csv"):
                write_atomically(self.folder / "curve.png", picture)
        except ImportError:
            if not self._told:
                print(f"note: {curve.MISSING}", file=sys.stderr)
            self._told = True

    def _restore(self) -> None:
        path = self.folder / CHECKPOINT
        try:
            check_regular(path)
            with safetensors.safe_open(path, framework="pt") as file:
                counters = json.loads((file.metadata() or {})["counters"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (OSError, safetensors.SafetensorError, KeyError, ValueError) as error:
            raise WeightsError(path, f"`{path}` is not a checkpoint, or is damaged", hint=_START_OVER) from error

        def part(prefix: str) -> dict[str, torch.Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        state: dict[int, dict[str, Any]] = {}
        for name, value in part("optimizer.").items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = value
        try:
            self.model.load_state_dict(part("model."))
            self.ema.module.load_state_dict(part("ema."))
            self.ema.updates = counters["updates"]
            if state:
                groups = self.optimizer.state_dict()["param_groups"]
                self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        except (RuntimeError, ValueError) as error:
            raise WeightsError(path, f"`{path}` does not fit the model", hint=_START_OVER) from error
        self.step, self.seconds = counters["step"], counters["seconds"]
        print(f"resuming from step {self.step} of {path}", file=sys.stderr)

    def _trim_log(self) -> None:
        """Drop rows of steps after the checkpoint, which will be repeated, and truncated rows."""
        path = self.folder / "log.csv"
        if not path.exists():
            return
        data = path.read_bytes()
        header, *rows = list(csv.reader(data.decode().splitlines())) or [[]]
        kept = [row for row in rows if len(row) == len(header) and row[0].isdecimal() and int(row[0]) < self.step]
        trimmed = "".join(",".join(row) + "\r\n" for row in [header, *kept] if row).encode()
        if trimmed != data:
            write_atomically(path, trimmed)
