"""Generators whose steps the tests let through one by one."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import studio


@dataclass(frozen=True, kw_only=True, eq=False)
class Sum(studio.State):
    total: int
    rng: studio.Rng
    handle: object = None


class Gate(studio.Generator):
    """Add random numbers, one a step; each step waits for a permit."""

    name = "gate"
    output = studio.Text

    def __init__(self):
        self.permits = threading.Semaphore(0)
        self.steps = 0

    class Inputs(studio.Inputs):
        count: int = studio.field(4, ge=1, le=1000, help="how many steps")
        savable: bool = studio.field(True, help="whether its state can be saved")

    def start(self, model, inputs, rng):
        return Sum(steps=inputs.count, total=0, rng=rng, handle=None if inputs.savable else object())

    def step(self, model, states):
        self.permits.acquire()
        self.steps += 1
        return [
            replace(state, position=state.position + 1, total=state.total + state.rng.fork(state.position).seed % 1000)
            for state in states
        ]

    def finish(self, model, state):
        return studio.Text(str(state.total))


class Note(studio.Generator):
    """Write a line to a file at each call, and return a text."""

    name = "note"
    output = studio.Text

    class Inputs(studio.Inputs):
        text: str = studio.field(help="what to return")
        file: str = studio.field("", help="the file to write to")

    def generate(self, model, inputs, rng):
        if inputs.file:
            with Path(inputs.file).open("a") as file:
                file.write(inputs.text + "\n")
        if inputs.text == "fail":
            raise ValueError("as it was told")
        if inputs.text == "die":
            os._exit(3)
        if inputs.text == "signal":
            os.kill(os.getpid(), signal.SIGSEGV)
        return studio.Text(inputs.text)


@studio.hookimpl
def studio_generators():
    return [Gate(), Note()]
