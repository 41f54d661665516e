"""Pipelines run as guests, against the same pipeline called by itself and against Studio's own loop.

    python benchmarks/guests.py                 # both parts, as Markdown
    python benchmarks/guests.py together --rounds 5

`together`: eight requests with unlike prompts, steps and guidance on the starter's folder: stock diffusers one after
another, as guests, and by the generator `image`; by turns, medians of the ratios of each round. `handing`: what it
costs to hand a module's call from the guest's thread to the host and back, in a pipeline whose modules do nothing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import studio
from studio.devices import torch_setup
from studio.engine import Engine, Request
from studio.recipe import PluginRef

torch_setup.prepare()

from diffusers import StableDiffusionPipeline  # noqa: E402  (needs prepare)

from studio.diffusion.calls import ModuleCall  # noqa: E402
from studio.diffusion.guest import GuestRun  # noqa: E402
from studio.diffusion.shared import Shared  # noqa: E402
from studio_diffusion.image import STARTER, ImageGenerator  # noqa: E402

PROMPTS = ("a red apple", "an octopus", "a house", "a cat", "a rocket", "an umbrella", "一只狗", "a tree")
STEPS = (20, 12, 28, 16, 24, 20, 14, 26)
GUIDANCE = (5.0, 3.0, 7.5, 4.0, 1.0, 6.0, 2.5, 8.0)
PLUGIN = PluginRef(name="benchmarks", version="1")


class Guests(studio.PipelineGenerator):
    """The starter's folder by diffusers' own pipeline."""

    name, output, folder, max_batch = "guests", studio.Image, STARTER, 8

    class Inputs(studio.Inputs):
        """What the requests differ in."""

        prompt: str = studio.field(help="prompt")
        steps: int = studio.field(20, help="steps")
        guidance: float = studio.field(5.0, help="guidance scale")

    def arguments(self, model: Any, inputs: Any) -> dict[str, Any]:
        """The pipeline's arguments."""
        return {"prompt": inputs.prompt, "num_inference_steps": inputs.steps, "guidance_scale": inputs.guidance,
                "height": 128, "width": 128}  # fmt: skip


def wall(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that `work` takes, and what it returns."""
    begun = time.perf_counter()
    made = work()
    return time.perf_counter() - begun, made


def pixels(picture: Any) -> np.ndarray:
    """Pixels as whole numbers."""
    return np.asarray(getattr(picture, "pil", picture)).astype(int)


def together(rounds: int, dtype: str) -> None:
    """Print the ratios of eight mixed requests, and how far the pictures are from stock's."""
    pipe = StableDiffusionPipeline.from_pretrained(STARTER, dtype=getattr(torch, dtype), local_files_only=True)
    pipe.set_progress_bar_config(disable=True)

    def stock() -> list[Any]:
        return [pipe(prompt, num_inference_steps=steps, guidance_scale=guidance, height=128, width=128,
                     generator=torch.Generator().manual_seed(i)).images[0]
                for i, (prompt, steps, guidance) in enumerate(zip(PROMPTS, STEPS, GUIDANCE, strict=True))]  # fmt: skip

    taken: dict[str, list[float]] = {"stock": [], "guests": [], "own": []}
    made: dict[str, list[Any]] = {}
    with Engine("cpu", dtype) as guests, Engine("cpu", dtype) as own:
        ways: dict[str, Callable[[], list[Any]]] = {
            "stock": stock, "guests": lambda: _by(guests, Guests()), "own": lambda: _by(own, ImageGenerator()),
        }  # fmt: skip
        for turn in range(rounds + 1):
            for name, work in ways.items():
                seconds, made[name] = wall(work)
                if turn:  # the first round warms up
                    taken[name].append(seconds)
    print(f"\n| eight mixed requests, {dtype}, {torch.get_num_threads()} threads | s | times stock's speed |")
    print("|---|---|---|")
    for name, seconds in taken.items():
        ratio = statistics.median(a / b for a, b in zip(taken["stock"], seconds, strict=True))
        print(f"| {name} | {statistics.median(seconds):.2f} | {ratio:.2f} |")
    speed = statistics.median(a / b for a, b in zip(taken["own"], taken["guests"], strict=True))
    far = max(int(np.abs(pixels(a) - pixels(b)).max()) for a, b in zip(made["stock"], made["guests"], strict=True))
    print(f"\nguests have {speed:.2f} times the speed of the own loop; pixels differ from stock's by at most {far}")


def _by(engine: Engine, generator: studio.Generator) -> list[Any]:
    asked = zip(PROMPTS, STEPS, GUIDANCE, strict=True)
    inputs = [generator.Inputs.parse({"prompt": prompt, "steps": steps, "guidance": guidance})
              for prompt, steps, guidance in asked]  # fmt: skip
    requests = [Request.of(generator, each, i, PLUGIN) for i, each in enumerate(inputs)]
    return [ticket.result(600) for ticket in [engine.submit(request) for request in requests]]


class _Idle:
    """A pipeline that calls a module again and again."""

    def __init__(self, calls: int) -> None:
        self.calls, self.module = calls, torch.nn.Identity()

    def __call__(self) -> int:
        x = torch.zeros(1)
        for _ in range(self.calls):
            x = self.module(x)
        return self.calls


def handing(rounds: int, calls: int = 2000) -> None:
    """Print the microseconds that handing over a call takes."""
    each = []
    for _ in range(rounds):
        run = GuestRun(_Idle(calls), {}, torch.Generator(), torch.device("cpu"))
        components = {"module": torch.nn.Identity()}
        shared = Shared(components)
        run.go_on(components, shared)
        begun = time.perf_counter()
        while isinstance(call := run.pending, ModuleCall):
            run.go_on(components, shared, call.args[0])
        if run.error is not None or run.result != calls:
            raise run.error or AssertionError(f"{run.result} calls were made")
        each.append((time.perf_counter() - begun) / calls * 1e6)
    print(f"\nhanding over a call: {statistics.median(each):.0f} µs (median of {rounds} times {calls:,} calls)")


def main() -> None:
    """Run the parts that are named, or both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=("together", "handing", []), help="both if none is named")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    parts = options.parts or ["together", "handing"]
    if "together" in parts:
        together(options.rounds, options.dtype)
    if "handing" in parts:
        handing(options.rounds)


if __name__ == "__main__":
    main()
