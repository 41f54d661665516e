"""Speed and peak memory of a generator, measured in a separate process, so that nothing else is included.

The child process loads the model and generates one image, then several, which the engine batches. It writes JSON to
standard output. Under other load the results mean little.

Try it: ``studio.evaluation.speed.measure("dcgan", [{}, {}, {}], {}, seed=0)``
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

from studio.errors import GeneratorFailed


@dataclass(frozen=True)
class Speed:
    """Seconds to the first image (with imports and loading), seconds per image for `count` images, peak bytes.

    `peak` is the process's resident memory on a CPU, and the memory allocated by torch on CUDA.
    """

    first_s: float
    each_s: float
    count: int
    peak: int
    device: str


def measure(
    generator: str,
    inputs: Sequence[dict[str, Any]],
    studio: dict[str, Any],
    seed: int,
    request: Mapping[str, Any] | None = None,
) -> Speed:
    """Generate an image for each of at least two inputs (JSON values) in a new process, the first by itself.

    `studio` has the arguments of `Studio`, and `request` options of `Studio.submit` (client, priority, time limit).
    Raises GeneratorFailed.
    """
    asked = json.dumps(
        {"generator": generator, "inputs": list(inputs), "studio": studio, "seed": seed, "request": dict(request or {})}
    )
    done = subprocess.run(
        [sys.executable, "-m", "studio.evaluation.speed"], input=asked, capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no error output"])[-1]
        raise GeneratorFailed(generator, f"`{generator}` failed during the speed measurement: {last[:300]}",
                              hint="generate one image with `studio generate` to see the error")  # fmt: skip
    return Speed(**json.loads(done.stdout))


def _child() -> None:
    begun = time.perf_counter()
    asked = json.load(sys.stdin)
    with redirect_stdout(sys.stderr):
        from studio.api import Studio

        with Studio(**asked["studio"]) as host:
            first, *others = asked["inputs"]
            request = asked["request"]
            host.generate(asked["generator"], seed=asked["seed"], **request, **first)
            ready = time.perf_counter()
            tickets = [
                host.submit(asked["generator"], seed=asked["seed"] + i, **request, **each)
                for i, each in enumerate(others)
            ]
            for ticket in tickets:
                ticket.result()
            took = time.perf_counter() - ready
            device = host.router.devices[0]
            speed = Speed(ready - begun, took / len(others), len(others), _peak(device), device)
    print(json.dumps(speed.__dict__))


def _peak(device: str) -> int:
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


if __name__ == "__main__":
    _child()
