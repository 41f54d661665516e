"""A plugin for the tests of resuming: two slow generators whose last byte depends on every step before it."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import studio

if TYPE_CHECKING:
    import torch


class Slow(studio.Inputs):
    steps: int = studio.field(100, ge=1, le=100_000, help="steps")
    pause: float = studio.field(0.004, ge=0, le=10, help="seconds that a step takes")
    keep_lock: bool = studio.field(False, help="hold what cannot be saved")


@dataclass(frozen=True, kw_only=True, eq=False)
class Links(studio.State):
    link: str
    past: tuple[str, ...]
    rng: studio.Rng
    pause: float
    lock: Any = None


class Chain(studio.Generator):
    """Hash the hash before it together with a random number, in pure Python."""

    name = "chain"
    output = studio.Text
    Inputs = Slow

    def start(self, model, inputs, rng):
        lock = object() if inputs.keep_lock else None
        return Links(steps=inputs.steps, link="", past=(), rng=rng, pause=inputs.pause, lock=lock, notices=("begun",))

    def step(self, model, states):
        return [self.next(state) for state in states]

    def next(self, state):
        time.sleep(state.pause)
        rng = studio.Rng.from_state_dict(state.rng.state_dict())
        link = hashlib.sha256(f"{state.link}{rng.python.gauss(0, 1)!r}".encode()).hexdigest()
        return replace(state, position=state.position + 1, link=link, past=(*state.past[-3:], link), rng=rng)

    def finish(self, model, state):
        return studio.Text(" ".join(state.past))


@dataclass(frozen=True, kw_only=True, eq=False)
class Walk(studio.State):
    x: torch.Tensor
    low: torch.Tensor
    before: torch.Tensor | None
    rng: studio.Rng
    pause: float


class Walker(studio.Generator):
    """Walk at random in float32 and bfloat16, with the turn before in mind."""

    name = "walker"
    output = studio.Text
    Inputs = Slow

    def start(self, model, inputs, rng):
        import torch

        x = torch.randn(4, 8, 8, generator=rng.torch).contiguous()
        return Walk(steps=inputs.steps, x=x.permute(2, 1, 0), low=x[:, ::2].bfloat16(), before=None, rng=rng,
                    pause=inputs.pause)  # fmt: skip

    def step(self, model, states):
        return [self.next(state) for state in states]

    def next(self, state):
        import torch

        time.sleep(state.pause)
        rng = studio.Rng.from_state_dict(state.rng.state_dict())
        noise = torch.randn(8, 8, 4, generator=rng.torch)
        before = torch.zeros_like(noise) if state.before is None else state.before
        x = torch.sin(state.x @ state.x.mT @ state.x / 50 + noise + before / 3)
        low = (state.low * 1.01 + x.permute(2, 1, 0)[:, ::2].bfloat16()).sin()
        return replace(state, position=state.position + 1, x=x, low=low, before=noise - x, rng=rng)

    def finish(self, model, state):
        data = state.x.contiguous().numpy().tobytes() + state.low.float().contiguous().numpy().tobytes()
        return studio.Text(hashlib.sha256(data).hexdigest())


@studio.hookimpl
def studio_generators():
    return [Chain(), Walker()]
