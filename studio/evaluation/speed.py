"""How long pictures take and what memory: measured in a process of its own, so that nothing else is counted in.

The child loads the model, makes one picture, then several together, as the engine batches them. It writes JSON to
standard output. Figures are of the machine as it was: beside other work they are worth little.

Try it: ``studio.evaluation.speed.measure("dcgan", [{}, {}, {}], {}, seed=0)``
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

from studio.errors import GeneratorFailed


@dataclass(frozen=True)
class Speed:
    """Seconds to the first picture (imports and loading in it), seconds a picture of `count` together, peak bytes.

    `peak` is the process's resident memory on a CPU, and on CUDA what torch allocated on the device.
    """

    first_s: float
    each_s: float
    count: int
    peak: int
    device: str


def measure(generator: str, inputs: Sequence[dict[str, Any]], studio: dict[str, Any], seed: int) -> Speed:
    """Make a picture of each of the inputs (JSON values) in a new process; `studio` has the arguments of `Studio`.

    The first is made by itself, the others together; so there must be two. Raises GeneratorFailed.
    """
    asked = json.dumps({"generator": generator, "inputs": list(inputs), "studio": studio, "seed": seed})
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
            host.generate(asked["generator"], seed=asked["seed"], **first)
            ready = time.perf_counter()
            tickets = [host.submit(asked["generator"], seed=asked["seed"] + i, **each) for i, each in enumerate(others)]
            for ticket in tickets:
                ticket.result()
            took = time.perf_counter() - ready
            device = host.router.engines[0].device
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
