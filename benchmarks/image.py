"""The starter in a warm process: the time of a picture, the engine's overhead, and the gain by batching.

    python benchmarks/image.py              # medians, as Markdown tables

Overhead is measured in pairs: the engine generates a picture, then a bare loop generates the same one with the same
forward passes; the overhead is the median of (engine - bare) / bare. The peer is diffusers with the same folder.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import studio
from studio.devices import torch_setup
from studio.engine import Engine, Request

torch_setup.prepare()

from diffusers import StableDiffusionPipeline  # noqa: E402  (needs prepare)

from studio_diffusion.image import STARTER, ImageGenerator  # noqa: E402


def bare(generator: ImageGenerator, model: Any, inputs: Any, seed: int) -> float:
    """Seconds of start, steps and finish without any host."""
    begun = time.perf_counter()
    with torch.inference_mode():
        state = generator.start(model, inputs, studio.Rng(seed))
        while not state.done:
            (state,) = generator.step(model, [state])
        generator.finish(model, state)
    return time.perf_counter() - begun


def wall(work: Callable[[], object]) -> float:
    """Seconds that `work` takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def overhead(host: studio.Studio, runs: int) -> None:
    """Print a warm picture's time by studio, by engine, by bare loop and by the stock pipeline, taken by turns."""
    generator = host.generators["image"]
    assert isinstance(generator, ImageGenerator)
    dtype = generator.dtype_for("cpu")
    model = generator.load(studio.ModelRef(), "cpu", dtype)
    inputs = generator.Inputs.parse({"prompt": "a red apple"})
    stock = StableDiffusionPipeline.from_pretrained(STARTER, dtype=model.dtype, local_files_only=True)
    stock.set_progress_bar_config(disable=True)
    taken: dict[str, list[float]] = {"studio": [], "engine": [], "bare": [], "stock": []}
    with Engine("cpu", dtype) as engine:
        for seed in range(runs + 1):  # the first round warms up
            request = Request.of(generator, inputs, seed, host.plugins.owner("image"))
            taken["studio"].append(wall(lambda: host.image("a red apple", seed=seed)))  # noqa: B023 (called at once)
            taken["engine"].append(wall(lambda: engine.submit(request).result()))  # noqa: B023
            taken["bare"].append(bare(generator, model, inputs, seed))
            taken["stock"].append(
                wall(lambda: stock("a red apple", num_inference_steps=20, guidance_scale=5.0, width=128, height=128))
            )
    middle = {name: statistics.median(times[1:]) for name, times in taken.items()}
    shares = [(a - b) / b for a, b in zip(taken["engine"][1:], taken["bare"][1:], strict=True)]
    print(f"{dtype}, {torch.get_num_threads()} threads, {runs} rounds\n")
    print("| warm, one picture, 20 guided steps, 128x128 | median s |\n|---|---|")
    print(f"| `Studio.image`: recipe, PNG and store included | {middle['studio']:.3f} |")
    print(f"| the engine alone | {middle['engine']:.3f} |")
    print(f"| a bare loop of the same forwards | {middle['bare']:.3f} |")
    print(f"| peer: stock `StableDiffusionPipeline`, same folder | {middle['stock']:.3f} |")
    print(f"\nengine overhead: {statistics.median(shares):.2%} of the bare loop (median of pairs)\n")


def batching(host: studio.Studio, runs: int) -> None:
    """Print seconds a picture by how many are asked for together."""
    print("| pictures in a batch | median s for all | s per picture |\n|---|---|---|")
    for count in (1, 2, 4, 8):
        taken = []
        for seed in range(runs):
            begun = time.perf_counter()
            host.images("a red apple", count, seed=seed)
            taken.append(time.perf_counter() - begun)
        middle = statistics.median(taken)
        print(f"| {count} | {middle:.2f} | {middle / count:.2f} |")


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(description="Time the starter in a warm process.")
    parser.add_argument("--runs", type=int, default=7)
    given = parser.parse_args()
    with studio.Studio() as host:
        overhead(host, given.runs)
        batching(host, max(3, given.runs // 2))


if __name__ == "__main__":
    main()
