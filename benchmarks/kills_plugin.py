"""Generators for `kills.py`: many short steps, and calls that are counted in a file. They load no torch."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace

import studio


@dataclass(frozen=True, kw_only=True, eq=False)
class Walk(studio.State):
    total: int
    seed: int


class Walker(studio.Generator):
    """Add random numbers, one each 10 ms, for some seconds."""

    name = "walker"
    output = studio.Text

    class Inputs(studio.Inputs):
        count: int = studio.field(300, ge=1, le=10_000, help="how many steps")

    def start(self, model, inputs, rng):
        return Walk(steps=inputs.count, total=0, seed=rng.seed)

    def step(self, model, states):
        time.sleep(0.01)
        return [
            replace(
                state, position=state.position + 1, total=state.total * 31 % 1_000_003 + state.seed + state.position
            )
            for state in states
        ]

    def batch_key(self, state):
        return "any"

    def finish(self, model, state):
        return studio.Text(f"{state.seed} {state.total}")


class Counted(studio.Generator):
    """Return a text, and write it and the time to a file."""

    name = "counted"
    output = studio.Text

    class Inputs(studio.Inputs):
        text: str = studio.field(help="what to return")
        file: str = studio.field(help="the file")

    def generate(self, model, inputs, rng):
        line = f"{time.time()} {inputs.text}\n".encode()
        file = os.open(inputs.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(file, line)
        os.close(file)
        time.sleep(0.05)
        return studio.Text(inputs.text)


@studio.hookimpl
def studio_generators():
    return [Walker(), Counted()]
