"""A plugin for the tests of workflows: generators that need no model and take no time."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import studio


class Shout(studio.Generator):
    """Write a text in capitals; fail at one, take a while for another."""

    name = "shout"
    output = studio.Text

    class Inputs(studio.Inputs):
        text: str = studio.field(help="the text", max_length=1000)
        times: int = studio.field(1, ge=1, le=5, help="how often")

    def generate(self, model: Any, inputs: Any, rng: studio.Rng) -> studio.Text:
        if inputs.text == "bad":
            raise ValueError("no shouting")
        return studio.Text(" ".join([inputs.text.upper()] * inputs.times))


class Greet(studio.Generator):
    """Name a person and a day: inputs with the names of a node's options."""

    name = "greet"
    output = studio.Text

    class Inputs(studio.Inputs):
        name: str = studio.field(help="the person")
        when: str = studio.field(help="the day")
        times: int = studio.field(1, ge=1, le=9, help="how often")

    def generate(self, model: Any, inputs: Any, rng: studio.Rng) -> studio.Text:
        return studio.Text(", ".join([f"{inputs.name} {inputs.when}"] * inputs.times))


class Paint(studio.Generator):
    """Paint a grey picture."""

    name = "paint"
    output = studio.Image

    class Inputs(studio.Inputs):
        width: int = studio.field(8, ge=1, le=64, help="pixels")
        height: int = studio.field(8, ge=1, le=64, help="pixels")

    def generate(self, model: Any, inputs: Any, rng: studio.Rng) -> studio.Image:
        import numpy as np

        return studio.Image.from_array(np.full((inputs.height, inputs.width, 3), rng.seed % 256, np.uint8))


class Measure(studio.Generator):
    """Score pictures by their widths."""

    name = "measure"
    output = studio.Embedding

    class Inputs(studio.Inputs):
        images: list[studio.Image] = studio.field(help="pictures", min_length=1)
        scale: float = studio.field(1.0, help="of each score")

    def generate(self, model: Any, inputs: Any, rng: studio.Rng) -> studio.Embedding:
        import numpy as np

        return studio.Embedding(np.array([image.size[0] * inputs.scale for image in inputs.images]))


class Slow(studio.Generator):
    """Add a letter after a while, and note in `made.log` beside the data folder that it did."""

    name = "slow"
    output = studio.Text

    class Inputs(studio.Inputs):
        text: str = studio.field(help="the text")
        seconds: float = studio.field(0.05, help="how long")
        log: str = studio.field(help="the file")

    def generate(self, model: Any, inputs: Any, rng: studio.Rng) -> studio.Text:
        time.sleep(inputs.seconds)
        with Path(inputs.log).open("a") as file:
            file.write(inputs.text + "\n")
        return studio.Text(inputs.text + "x")


@studio.hookimpl
def studio_generators() -> list[studio.Generator]:
    return [Shout(), Greet(), Paint(), Measure(), Slow()]
