"""`image --cache` and `--fast` compared with twenty guided steps: times, and for the cache the PSNR.

    python benchmarks/fast.py           # one picture at a time, alternately in one process; medians over the prompts

The PSNR in dB is between the two pictures of a prompt and seed. `--fast` generates other pictures, which are evaluated
by ``python benchmarks/recognition.py --fast …``.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path

import numpy as np

import studio
from studio.devices import torch_setup

torch_setup.prepare()

PROMPTS = Path(__file__).with_name("recognition_prompts.json")
WAYS = {"20 steps, guidance 5": {}, "`--cache`": {"cache": True}, "`--fast`": {"fast": True}}


def psnr(one: studio.Image, other: studio.Image) -> float:
    """Peak signal-to-noise ratio in dB; infinite for equal pictures."""
    error = np.square(np.asarray(one.pil, np.float64) - np.asarray(other.pil, np.float64)).mean()
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def main() -> None:
    """Parse and measure; the first round warms up."""
    parser = argparse.ArgumentParser(description="Time a cached and a short way against the usual one.")
    parser.add_argument("--prompts", type=int, default=20)
    given = parser.parse_args()
    names = [row["label"] for row in json.loads(PROMPTS.read_text("utf-8"))][: given.prompts]
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    near = []
    with studio.Studio() as host:
        for seed, name in enumerate([names[-1], *names], -1):
            made = {}
            for way, inputs in WAYS.items():
                begun = time.perf_counter()
                made[way] = host.image(f"a {name}", seed=max(seed, 0), **inputs)
                taken[way].append(time.perf_counter() - begun)
            near.append(psnr(*list(made.values())[:2]))
    usual = taken[next(iter(WAYS))][1:]
    print("| one picture, warm, 128x128 | median s | times faster, median of rounds |\n|---|---|---|")
    for way, times in taken.items():
        ratio = statistics.median(a / b for a, b in zip(usual, times[1:], strict=True))
        print(f"| {way} | {statistics.median(times[1:]):.3f} | {ratio:.2f} |")
    print(f"\n`--cache`: PSNR {statistics.median(near[1:]):.1f} dB, least {min(near[1:]):.1f}, {len(names)} prompts")


if __name__ == "__main__":
    main()
