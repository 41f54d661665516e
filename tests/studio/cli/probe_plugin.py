"""A plugin for the tests of the command line: small generators without weights, each with something to look at."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

import studio


class Echo(studio.Generator):
    """Say the text again.

    One input of each kind that a command line knows.
    """

    name, output = "echo", studio.Text

    class Inputs(studio.Inputs):
        text: str = studio.field(help="what to say", min_length=1, max_length=40)
        times: int = studio.field(1, ge=1, le=9, help="how often")
        weight: float = studio.field(1.0, ge=0, help="how heavy")
        loud: bool = studio.field(False, help="in capitals")
        style: str = studio.field("plain", choices=("plain", "fancy"), help="how to say it")
        tags: list[str] = studio.field([], help="what to add")
        size: tuple[int, int] | str = studio.field("1x1", help="anything")
        device: str = studio.field("", help="an input with the name of an option")

    def generate(self, model: Any, inputs: Inputs, rng: studio.Rng) -> studio.Text:
        print("a stray print")
        words = " ".join([inputs.text] * inputs.times + inputs.tags)
        words = words.upper() if inputs.loud else words
        return studio.Text(f"{words} | {inputs.weight:g} {inputs.style} {inputs.size} {inputs.device} | {rng.seed}")


class Dot(studio.Generator):
    """Paint a plain picture."""

    name, output = "dot", studio.Image

    class Inputs(studio.Inputs):
        prompt: str = studio.field(help="words that go into the recipe", min_length=1)
        side: int = studio.field(8, ge=1, le=4096, multiple_of=8, help="pixels")

    def generate(self, model: Any, inputs: Inputs, rng: studio.Rng) -> studio.Image:
        return studio.Image(
            Image.effect_noise((inputs.side, inputs.side), 0).convert("RGB").point(lambda _: rng.seed % 256)
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Counting(studio.State):
    inputs: Any
    seed: int


class Slow(studio.Generator):
    """Count to the number of steps, with a pause at each."""

    name, output = "slow", studio.Text

    class Inputs(studio.Inputs):
        steps: int = studio.field(3, ge=1, le=1000, help="how many")
        pause: float = studio.field(0.0, ge=0, help="seconds a step")
        fail_seed: int = studio.field(-1, help="the seed that fails in its second step")
        marker: str = studio.field("", help="a file to write when the first step has begun")

    def start(self, model: Any, inputs: Inputs, rng: studio.Rng) -> Counting:
        return Counting(steps=inputs.steps, inputs=inputs, seed=rng.seed, notices=("it counts",))

    def step(self, model: Any, states: Sequence[Counting]) -> list[Counting]:
        for state in states:
            if state.inputs.marker:
                with open(state.inputs.marker, "w"):
                    pass
            if state.seed == state.inputs.fail_seed and state.position == 1:
                raise ValueError("this seed fails")
            time.sleep(state.inputs.pause)
        return [replace(state, position=state.position + 1) for state in states]

    def finish(self, model: Any, state: Counting) -> studio.Text:
        return studio.Text(f"counted to {state.position}")

    def preview(self, model: Any, state: Counting) -> studio.Text:
        return studio.Text(f"at {state.position}")

    def batch_key(self, state: Counting) -> str:
        return "all"


class Lesson(studio.Trainer):
    """Learn something."""

    name = "lesson"

    class Options(studio.Inputs):
        topic: str = studio.field(help="what to learn")
        hours: float = studio.field(1.0, gt=0, help="how long")

    def run(self, options: Options, console: studio.Console) -> None:
        console.print(f"learning [{options.topic}] for {options.hours:g} h")


@studio.hookimpl
def studio_generators() -> list[studio.Generator]:
    return [Echo(), Dot(), Slow()]


@studio.hookimpl
def studio_trainers() -> list[studio.Trainer]:
    return [Lesson()]
