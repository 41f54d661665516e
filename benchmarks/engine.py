"""The engine under load: batched pictures compared with diffusers, an interactive picture during background work, the
engine's overhead per step, and how soon the memory of a cancelled request is released.

    python benchmarks/engine.py                        # all of it, as Markdown
    python benchmarks/engine.py together --device cuda # 16 pictures and a table of widths, on a GPU

Peers are measured alternately in the same run, and ratios are medians over rounds. Pictures of both sides are compared
pixel by pixel.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

import studio
from studio import devices
from studio.devices import torch_setup
from studio.engine import Engine, Request, Started
from studio.engine.events import Progress
from studio.recipe import PluginRef

torch_setup.prepare()

from diffusers import StableDiffusionPipeline  # noqa: E402  (needs prepare)

from studio_diffusion.image import STARTER, ImageGenerator  # noqa: E402

PROMPTS = ("a red apple", "an octopus", "a house", "a cat", "a rocket", "an umbrella", "一只狗", "a tree")
PLUGIN = PluginRef(name="benchmarks", version="1")


def wall(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that `work` takes, and what it returns."""
    begun = time.perf_counter()
    made = work()
    return time.perf_counter() - begun, made


@dataclass(frozen=True)
class Ask:
    """One picture asked for."""

    prompt: str
    seed: int
    steps: int
    guidance: float


def mixed(count: int) -> list[Ask]:
    """Requests with unlike steps and guidance, 20 steps on average; one in eight is not guided."""
    steps = (20, 12, 28, 16, 24, 20, 14, 26)
    guidance = (5.0, 3.0, 7.5, 4.0, 1.0, 6.0, 2.5, 8.0)
    return [Ask(PROMPTS[i % 8], 100 + i, steps[i % 8], guidance[i % 8]) for i in range(count)]


def noise(asks: list[Ask], device: str) -> torch.Tensor:
    """The latents that our generator draws for these seeds, (N, 8, 16, 16)."""
    return torch.cat([torch.randn((1, 8, 16, 16), generator=studio.Rng(a.seed).torch) for a in asks]).to(device)


def pixels(picture: Any) -> np.ndarray:
    return np.asarray(getattr(picture, "pil", picture)).astype(int)


def together(device: str, rounds: int) -> None:
    """Concurrent requests against stock: one after another, and as one ideal batch where all are equal.

    Stock has a process of its own: thread pools of two sides in one process are more threads than cores, and then
    libgomp lets them spin less at each barrier, which slows both.
    """
    count = 16 if device.startswith("cuda") else 8
    unlike = mixed(count)
    equal = [Ask(PROMPTS[i % 8], 100 + i, 20, 5.0) for i in range(count)]
    with Stock(device) as stock, tempfile.TemporaryDirectory() as home, studio.Studio(home=home, device=device) as host:

        def ours(asks: list[Ask]) -> float:
            return wall(lambda: [ticket.result() for ticket in [submit(host, ask) for ask in asks]])[0]

        stock.alone(unlike[:1]), stock.ideal(equal)  # warm; and it is loaded before the engine measures its threads
        for _ in range(5):
            ours(unlike), ours(equal)  # warm: kernels, and the engine's table of widths and threads
        taken: dict[str, list[float]] = {"mixed": [], "stock": [], "equal": [], "ideal": []}
        for _ in range(rounds):
            taken["mixed"].append(ours(unlike))
            taken["stock"].append(stock.alone(unlike))
            taken["equal"].append(ours(equal))
            taken["ideal"].append(stock.ideal(equal))
    middle = {name: statistics.median(times) for name, times in taken.items()}
    first = ratio(taken["stock"], taken["mixed"])
    second = ratio(taken["ideal"], taken["equal"])
    print(f"\n### {count} pictures together\n\n{device}, {rounds} rounds\n")
    print(f"| {count} pictures, 128x128 | median s | pictures a second | against the peer |\n|---|---|---|---|")
    print(f"| engine, mixed steps (12 to 28) and guidance | {middle['mixed']:.2f} | {count / middle['mixed']:.2f} | **{first:.2f}x** |")  # fmt: skip  # noqa: E501
    print(f"| peer: stock pipeline, the same one after another | {middle['stock']:.2f} | {count / middle['stock']:.2f} | |")  # fmt: skip  # noqa: E501
    print(f"| engine, equal steps and guidance | {middle['equal']:.2f} | {count / middle['equal']:.2f} | **{second:.2f}x** |")  # fmt: skip  # noqa: E501
    print(f"| peer: stock pipeline, the same as one ideal batch | {middle['ideal']:.2f} | {count / middle['ideal']:.2f} | |")  # fmt: skip  # noqa: E501
    gap = difference(unlike[:4], device)
    print(
        f"\nLargest difference of a pixel, in float32: {gap} of 255 (in bfloat16 stock rounds the latents themselves at"
    )
    print("each step, which the engine does not).")


def submit(host: studio.Studio, ask: Ask) -> Any:
    return host.submit("image", prompt=ask.prompt, seed=ask.seed, steps=ask.steps, guidance=ask.guidance)


class Stock:
    """Stock diffusers in a process of its own; each call returns the seconds that it took there."""

    def __init__(self, device: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, device), daemon=True)

    def __enter__(self) -> Stock:
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.send(None)
        self._process.join()

    def alone(self, asks: list[Ask]) -> float:
        return self._ask(("alone", asks))

    def ideal(self, asks: list[Ask]) -> float:
        return self._ask(("ideal", asks))

    def _ask(self, what: tuple[str, list[Ask]]) -> float:
        self._pipe.send(what)
        return float(self._pipe.recv())


def serve(pipe: Any, device: str) -> None:
    """The peer's process: pictures one after another, or as one batch with the first one's steps and guidance."""
    dtype = getattr(torch, ImageGenerator().dtype_for(device))
    stock = StableDiffusionPipeline.from_pretrained(STARTER, dtype=dtype, local_files_only=True).to(device)
    stock.set_progress_bar_config(disable=True)

    def make(asks: list[Ask]) -> None:
        latents = noise(asks, device).to(dtype)
        prompts = [ask.prompt for ask in asks]
        stock(prompts, num_inference_steps=asks[0].steps, guidance_scale=asks[0].guidance, latents=latents)

    while (what := pipe.recv()) is not None:
        kind, asks = what
        pipe.send(wall(lambda: make(asks) if kind == "ideal" else [make([ask]) for ask in asks])[0])  # noqa: B023


def difference(asks: list[Ask], device: str) -> int:
    """Between the engine's pictures, made together, and stock's, each by itself."""
    with tempfile.TemporaryDirectory() as home, studio.Studio(home=home, device=device, dtype="float32") as host:
        tickets = [host.submit("image", prompt=a.prompt, seed=a.seed, steps=a.steps, guidance=a.guidance) for a in asks]
        ours = [pixels(ticket.result()) for ticket in tickets]
    stock = StableDiffusionPipeline.from_pretrained(STARTER, dtype=torch.float32, local_files_only=True).to(device)
    stock.set_progress_bar_config(disable=True)
    theirs = [
        pixels(
            stock(a.prompt, num_inference_steps=a.steps, guidance_scale=a.guidance, latents=noise([a], device)).images[
                0
            ]
        )
        for a in asks
    ]
    return max(int(abs(one - other).max()) for one, other in zip(ours, theirs, strict=True))


def ratio(slow: list[float], fast: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def widths(device: str, rounds: int) -> None:
    """Seconds of a guided step by width."""
    generator = ImageGenerator()
    model = generator.load(studio.ModelRef(), device, generator.dtype_for(device))
    inputs = generator.Inputs.parse({"prompt": "a red apple"})
    print("\n### Guided steps by width\n\n| width | ms a step | states a second |\n|---|---|---|")
    with torch.inference_mode():
        for width in (1, 2, 4, 8, 16, 32, 64) if device.startswith("cuda") else (1, 2, 4, 8, 16):
            states = [generator.start(model, inputs, studio.Rng(seed)) for seed in range(width)]
            taken = [wall(lambda: (generator.step(model, states), sync(device)))[0] for _ in range(rounds + 2)]  # noqa: B023
            middle = statistics.median(taken[2:])
            print(f"| {width} | {middle * 1000:.1f} | {width / middle:.1f} |")


def sync(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def beside(rounds: int) -> None:
    """An interactive picture while background work holds the device: here a 512x512 picture of a thousand steps, whose
    latents are those of a video of 16 frames at 128x128.
    """
    idle, busy, steps = [], [], []
    with tempfile.TemporaryDirectory() as home, studio.Studio(home=home, device="cpu") as host:
        host.image("a cat", seed=1)
        video: dict[str, Any] = {"prompt": "a horse", "size": "512x512", "steps": 1000, "priority": "background"}
        for seed in range(rounds):
            idle.append(wall(lambda: host.image("a red apple", seed=seed))[0])  # noqa: B023
            ticket = host.submit("image", seed=seed, client="video", **video)
            moved = threading.Event()
            threading.Thread(target=follow, args=(ticket, moved, steps), daemon=True).start()
            moved.wait()
            busy.append(wall(lambda: host.image("a red apple", seed=seed))[0])  # noqa: B023
            ticket.cancel()
    one = statistics.median(steps)
    alone, together_s = statistics.median(idle), statistics.median(busy)
    over = statistics.median((b - one) / a for a, b in zip(idle, busy, strict=True))
    print("\n### An interactive picture beside background work\n")
    print("| picture of 20 guided steps | median s |\n|---|---|")
    print(f"| on an idle engine | {alone:.2f} |")
    print(f"| while a background request of 16 times the latents runs (one step: {one:.2f} s) | {together_s:.2f} |")
    print(f"\nLess one background step that is {over:.2f} times the idle time (goal: 1.3).")


def follow(ticket: Any, moved: threading.Event, steps: list[float]) -> None:
    """Note the seconds of a request's first steps, and tell when it has made three."""
    last = 0.0
    for event in ticket.events():
        if isinstance(event, Started):
            last = time.perf_counter()
        elif isinstance(event, Progress):
            now = time.perf_counter()
            if event.position <= 3:
                steps.append(now - last)
            last = now
            if event.position == 3:
                moved.set()


@dataclass(frozen=True, kw_only=True, eq=False)
class Count(studio.State):
    """Counts."""


class Busy(studio.Generator):
    """Keep the processor busy for a while in each step, together however many there are."""

    name = "busy"
    output = studio.Text

    class Inputs(studio.Inputs):
        """How long."""

        steps: int = studio.field(200, help="steps")
        seconds: float = studio.field(0.0, help="seconds a step")

    def start(self, model: Any, inputs: Any, rng: studio.Rng) -> Count:
        self.seconds = inputs.seconds
        return Count(steps=inputs.steps)

    def step(self, model: Any, states: Any) -> list[Count]:
        until = time.perf_counter() + self.seconds
        while time.perf_counter() < until:
            pass
        return [replace(state, position=state.position + 1) for state in states]

    def finish(self, model: Any, state: Any) -> studio.Text:
        return studio.Text("done")

    def batch_key(self, state: Any) -> int:
        return 1


def bare(generator: Busy, inputs: Any) -> float:
    """Seconds of the same calls in a plain loop."""
    begun = time.perf_counter()
    state: Any = generator.start(None, inputs, studio.Rng(1))
    while not state.done:
        (state,) = generator.step(None, [state])
    generator.finish(None, state)
    return time.perf_counter() - begun


def overhead(rounds: int) -> None:
    """What the engine adds to a step: at 20 ms, at nothing, and by how many wait."""
    shares, absolute = [], []
    for _ in range(rounds):
        generator = Busy()
        for seconds, steps in ((0.02, 100), (0.0, 3000)):
            inputs = generator.Inputs.parse({"steps": steps, "seconds": seconds})
            with Engine("cpu") as engine:
                run(engine, generator, inputs, 1)
                took = run(engine, generator, inputs, 1)
            own = bare(generator, inputs)
            if seconds:
                shares.append((took - own) / own)
            else:
                absolute.append((took - own) / steps)
    queued = {count: [] for count in (2, 200)}
    for _ in range(rounds):
        for count, times in queued.items():
            generator = Busy()
            inputs = generator.Inputs.parse({"steps": 4000 // count, "seconds": 0.0})
            with Engine("cpu") as engine:
                run(engine, generator, inputs, count)
                times.append(run(engine, generator, inputs, count) / 4000)
    print("\n### What the engine adds to a step\n\n| | median |\n|---|---|")
    print(f"| share of 20 ms steps | {statistics.median(shares):.2%} |")
    print(f"| control: a medley of library calls, at once | {medley(0.0):.0f} µs |")
    print(f"| control: the same after 20 ms of other work | {medley(0.02):.0f} µs |")
    print(f"| a step that does nothing | {statistics.median(absolute) * 1e6:.0f} µs |")
    for count, times in queued.items():
        each = statistics.median(times) * 1e6
        print(f"| a request's step that does nothing, {count} requests at once | {each:.0f} µs |")


def medley(after_s: float) -> float:
    """Microseconds that a few calls of the standard library take just after the processor did something else.

    It tells how much of what a 20 ms step costs is caches that went cold, which no engine can help.
    """
    taken = []
    for _ in range(100):
        until = time.perf_counter() + after_s
        while time.perf_counter() < until:
            pass
        taken.append(wall(lambda: (json.loads(json.dumps({"a": [1, 2, 3]})), re.sub("a", "b", "ab" * 20)))[0])
    return statistics.median(taken) * 1e6


def run(engine: Engine, generator: Busy, inputs: Any, count: int) -> float:
    requests = [Request.of(generator, inputs, seed, PLUGIN) for seed in range(count)]
    begun = time.perf_counter()
    for ticket in engine.submit_many(requests):
        ticket.result()
    return time.perf_counter() - begun


def cancelling(rounds: int) -> None:
    """How long after `cancel` the ledger has a request's memory back, in steps of that request."""
    waits = []
    with tempfile.TemporaryDirectory() as home, studio.Studio(home=home, device="cpu") as host:
        host.image("a cat", seed=1)
        ledger = host.router.engines[0].ledger
        models = ledger.used
        for seed in range(rounds):
            steps: list[float] = []
            ticket = host.submit("image", prompt="a horse", size="256x256", steps=1000, seed=seed)
            moved = threading.Event()
            threading.Thread(target=follow, args=(ticket, moved, steps), daemon=True).start()
            moved.wait()
            begun = time.perf_counter()
            ticket.cancel()
            while ledger.used > models:
                time.sleep(0.0005)
            waits.append((time.perf_counter() - begun) / statistics.median(steps))
    print("\n### Cancelling\n")
    print(f"Memory is back in the ledger {statistics.median(waits):.2f} steps after `cancel` (most: {max(waits):.2f}).")


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(description="Measure the engine under load.")
    parser.add_argument("parts", nargs="*", default=["together", "beside", "overhead", "cancel"],
                        help="together, widths, beside, overhead, cancel")  # fmt: skip
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    device = devices.device(devices.choose(given.device))
    versions = {"torch": torch.__version__, **device.versions()}
    print(f"{device.label}: {', '.join(f'{name} {version}' for name, version in versions.items())}\n")
    if "together" in given.parts:
        together(given.device, given.rounds)
    if "widths" in given.parts or "together" in given.parts:
        widths(given.device, given.rounds)
    if "beside" in given.parts:
        beside(given.rounds)
    if "overhead" in given.parts:
        overhead(given.rounds)
    if "cancel" in given.parts:
        cancelling(given.rounds)


if __name__ == "__main__":
    main()
