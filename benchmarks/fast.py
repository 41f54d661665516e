"""`image --fast` against twenty guided steps: how many times faster, one picture at a time, by turns in one process.

    python benchmarks/fast.py           # medians of pairs

How recognisable its pictures are: ``python benchmarks/recognition.py --fast …``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import studio
from studio import torch_setup

torch_setup.prepare()

PROMPTS = Path(__file__).with_name("recognition_prompts.json")


def seconds(host: studio.Studio, prompt: str, seed: int, fast: bool) -> float:
    """Seconds from the request to the picture, recipe and store included."""
    begun = time.perf_counter()
    host.image(prompt, seed=seed, fast=fast)
    return time.perf_counter() - begun


def main() -> None:
    """Parse and measure; the first pair warms up."""
    parser = argparse.ArgumentParser(description="Time four steps against twenty.")
    parser.add_argument("--prompts", type=int, default=20)
    given = parser.parse_args()
    names = [row["label"] for row in json.loads(PROMPTS.read_text("utf-8"))][: given.prompts]
    pairs = []
    with studio.Studio() as host:
        for seed, name in enumerate([names[0], *names]):
            pairs.append(tuple(seconds(host, f"a {name}", seed, fast) for fast in (False, True)))
    slow, fast = (statistics.median(each) for each in zip(*pairs[1:], strict=True))
    ratios = sorted(a / b for a, b in pairs[1:])
    print("| one picture, warm, 128x128 | median s |\n|---|---|")
    print(f"| 20 steps, guidance 5 | {slow:.3f} |\n| `--fast` | {fast:.3f} |")
    print(f"\ntimes faster: {statistics.median(ratios):.2f} (median of {len(ratios)} pairs; least {ratios[0]:.2f})")


if __name__ == "__main__":
    main()
