"""Is the ledger correct, and does memory stay constant? Measured by the process's resident memory.

    python benchmarks/soak.py mixture --minutes 10 --memory 300MiB   # random work under a budget
    python benchmarks/soak.py leak --requests 2000                   # the same work, again and again

Resident memory is sampled every 5 ms. The budget is for models, states and steps; Python, torch and plugins' code are
not included: they are the resident memory after each kind of work was done once and all models were dropped.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

import studio
from studio.devices import torch_setup
from studio.engine.memory.model_cache import release_freed
from studio.errors import StudioError
from studio.units import parse_bytes, show_bytes

torch_setup.prepare()
import torch  # noqa: E402  (needs prepare)

SIZES = ("64x64", "128x128", "192x128", "256x256")


@dataclass(frozen=True, kw_only=True, eq=False)
class Tokens(studio.State):
    """Numbers that grow by one row a step, as a text's cache does."""

    cache: torch.Tensor


class Grow(studio.Generator):
    """Stand for text: a state that grows, and steps of a few kinds of width."""

    name = "grow"
    output = studio.Text

    class Inputs(studio.Inputs):
        """How much."""

        steps: int = studio.field(64, ge=1, help="rows to add")
        wide: int = studio.field(4096, ge=1, help="numbers in a row")

    def start(self, model: Any, inputs: Any, rng: studio.Rng) -> Tokens:
        return Tokens(steps=inputs.steps, cache=torch.zeros(1, inputs.wide))

    def step(self, model: Any, states: Any) -> list[Tokens]:
        return [replace(s, position=s.position + 1, cache=torch.cat([s.cache, s.cache[-1:] + 1])) for s in states]

    def finish(self, model: Any, state: Tokens) -> studio.Text:
        return studio.Text(str(float(state.cache.sum())))

    def batch_key(self, state: Tokens) -> int:
        return state.cache.shape[1]


@studio.hookimpl
def studio_generators() -> list[studio.Generator]:
    return [Grow()]


def resident() -> int:
    """Bytes of this process in memory."""
    return psutil.Process().memory_info().rss


class Sampler(threading.Thread):
    """Notes the most that was resident."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most, self._end = 0, threading.Event()

    def run(self) -> None:
        while not self._end.wait(0.005):
            self.most = max(self.most, resident())

    def end(self) -> int:
        self._end.set()
        self.join()
        return self.most


def ask(host: studio.Studio, rng: random.Random) -> Any:
    """One request of the mixture."""
    client, priority = rng.choice("abc"), rng.choice(("interactive", "background"))
    seed = rng.randrange(1000)
    if rng.random() < 0.3:
        return host.submit("grow", seed=seed, client=client, priority=priority, steps=rng.randrange(8, 400),
                           wide=rng.choice((1024, 8192)))  # fmt: skip
    return host.submit("image", seed=seed, client=client, priority=priority, prompt=rng.choice(("a cat", "a tree")),
                       size=rng.choice(SIZES), steps=rng.randrange(1, 12), guidance=rng.choice((1.0, 5.0)))  # fmt: skip


def mixture(minutes: float, memory: str) -> None:
    """Random requests, some of them cancelled, under a budget; the most that was resident against it."""
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as home, studio.Studio(
        home=home, device="cpu", memory=memory, plugins=[Path(__file__)]
    ) as host:  # fmt: skip
        engine = host.router.engines[0]
        for size in SIZES:
            host.image("a cat", seed=1, size=size, steps=2)
        host.generate("grow", seed=1, steps=400, wide=8192)
        engine._models.evict_all(lambda model: 0)
        release_freed("cpu")
        base, ledger = resident(), engine.ledger
        ledger.most_used = ledger.used
        sampler = Sampler()
        sampler.start()
        until = time.monotonic() + 60 * minutes
        open_, ended, cancelled, refused = [], 0, 0, 0
        while time.monotonic() < until:
            while len(open_) < rng.randrange(1, 24):
                open_.append(ask(host, rng))
            time.sleep(rng.random() * 0.2)
            if rng.random() < 0.1:
                open_[rng.randrange(len(open_))].cancel()
            for ticket in [each for each in open_ if each.done]:
                open_.remove(ticket)
                try:
                    ticket.result()
                    ended += 1
                except studio.errors.Cancelled:
                    cancelled += 1
                except StudioError as error:
                    refused += 1
                    print(error.message)
        most = sampler.end()
        for ticket in open_:
            ticket.cancel()
        budget = parse_bytes(memory)
    over = most - base
    print(f"\n### {minutes:g} minutes of random work under {memory}\n\n| | |\n|---|---|")
    print(f"| requests finished, cancelled, failed | {ended}, {cancelled}, {refused} |")
    print(f"| resident before (Python, torch, libraries) | {show_bytes(base)} |")
    print(f"| most resident above that, sampled | {show_bytes(max(0, over))} |")
    print(f"| most held by the ledger (weights and states) | {show_bytes(ledger.most_used)} |")
    print(f"| of the budget of {show_bytes(budget)} | **{over / budget:.0%}** |")


def leak(requests: int) -> None:
    """Equal requests one after another, four at a time: resident memory after warm-up, and at the end."""
    with tempfile.TemporaryDirectory() as home, studio.Studio(home=home, device="cpu") as host:
        seen = []
        for start in range(0, requests, 4):
            tickets = [
                host.submit("image", seed=start + i, prompt=f"a cat {start + i}", size="64x64", steps=2)
                for i in range(4)
            ]
            for ticket in tickets:
                ticket.result()
            seen.append(resident())
    warm = seen[len(seen) // 10]
    print(f"\n### {requests} requests\n\n| after | resident |\n|---|---|")
    for part in range(1, 11):
        print(f"| {requests * part // 10} | {show_bytes(seen[len(seen) * part // 10 - 1])} |")
    print(f"\nFrom a tenth of the way to the end: {seen[-1] / warm - 1:+.1%} (goal: within 2%).")


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(description="Watch the memory of a working engine.")
    parser.add_argument("part", choices=("mixture", "leak"))
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--memory", default="300MiB")
    parser.add_argument("--requests", type=int, default=2000)
    given = parser.parse_args()
    if given.part == "mixture":
        mixture(given.minutes, given.memory)
    else:
        leak(given.requests)


if __name__ == "__main__":
    main()
