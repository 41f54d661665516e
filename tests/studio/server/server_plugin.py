"""Generators for the server's tests: one that runs until it is cancelled, and one that fails with a path."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, replace

import numpy as np
import PIL.Image
from pydantic import field_validator

import studio


@dataclass(frozen=True, kw_only=True, eq=False)
class Waiting(studio.State):
    """It is never done by itself."""


class Endless(studio.Generator):
    """Draw for ever."""

    name = "endless"
    output = studio.Image

    class Inputs(studio.Inputs):
        prompt: str = studio.field(help="what to ignore")

    def start(self, model, inputs, rng):
        return Waiting(steps=1_000_000)

    def step(self, model, states):
        threading.Event().wait(0.002)
        return [replace(state, position=state.position + 1) for state in states]

    def finish(self, model, state):
        raise AssertionError("it does not end")


class Failing(studio.Generator):
    """Fail, with a path in the reason."""

    name = "failing"
    output = studio.Image

    class Inputs(studio.Inputs):
        prompt: str = studio.field(help="what to ignore")

    def generate(self, model, inputs, rng):
        raise RuntimeError("cannot read /home/someone/secret.bin")


class Plain(studio.Generator):
    """Draw one colour, of a size."""

    name = "plain"
    output = studio.Image

    class Inputs(studio.Inputs):
        prompt: str = studio.field(help="what to ignore", max_length=1000)
        size: str = studio.field("16x16", help="WIDTHxHEIGHT", aliases=("{width}x{height}",))
        image: studio.Image | None = studio.field(None, help="a picture to return")
        mask: studio.Image | None = studio.field(None, help="a mask to return instead")
        steps: int = studio.field(1, ge=1, le=100, help="what to ignore", aliases=("num_inference_steps",))
        strength: float = studio.field(1.0, help="what to ignore")

    def generate(self, model, inputs, rng):
        if inputs.mask or inputs.image:
            return inputs.mask or inputs.image
        width, height = (int(side) for side in inputs.size.split("x"))
        return studio.Image(PIL.Image.new("RGB", (width, height), (rng.python.randrange(256), inputs.steps, 0)))


class Speaker(studio.Generator):
    """Hum for as long as the text is."""

    name = "speaker"
    output = studio.Audio

    class Inputs(studio.Inputs):
        text: str = studio.field(help="what to say")
        voice: str = studio.field("low", help="how", choices=("low", "high"))

    def generate(self, model, inputs, rng):
        hertz = 220 if inputs.voice == "low" else 880
        return studio.Audio(np.sin(np.arange(240 * len(inputs.text)) / 24000 * hertz * 6.28)[None] / 2, 24000)


class Listener(studio.Generator):
    """Say how long a sound is."""

    name = "listener"
    output = studio.Text

    class Inputs(studio.Inputs):
        audio: studio.Audio = studio.field(help="the sound")
        language: str = studio.field("en", help="the language")

    def generate(self, model, inputs, rng):
        seconds = inputs.audio.waveform.shape[1] / inputs.audio.rate
        return studio.Text(f"{inputs.language}: {seconds:.1f} s")


class Clip(studio.Generator):
    """Frames that become lighter."""

    name = "clip"
    output = studio.Video

    class Inputs(studio.Inputs):
        prompt: str = studio.field(help="what to ignore", min_length=1)
        size: str = studio.field("16x16", help="WIDTHxHEIGHT")
        frames: int = studio.field(4, ge=1, le=100, help="how many")
        fps: float = studio.field(4, ge=1, le=60, help="per second")
        image: studio.Image | None = studio.field(None, help="what to ignore")

        @field_validator("size")
        @classmethod
        def _is_a_size(cls, value: str) -> str:
            if not re.fullmatch(r"\d+x\d+", value):
                raise ValueError("must be WIDTHxHEIGHT")
            return value

    def generate(self, model, inputs, rng):
        width, height = (int(side) for side in inputs.size.split("x"))
        light = np.linspace(0, 255, inputs.frames).astype(np.uint8)[:, None, None, None]
        return studio.Video(np.broadcast_to(light, (inputs.frames, height, width, 3)).copy(), inputs.fps)


@studio.hookimpl
def studio_generators():
    return [Endless(), Failing(), Plain(), Clip(), Speaker(), Listener()]
