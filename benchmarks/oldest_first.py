"""When the pictures of one client are finished: the first, the median and the last of many.

    python benchmarks/oldest_first.py                    # 28 pictures of the starter in 8 steps
    python benchmarks/oldest_first.py --count 12 --steps 20

Times depend on the machine; the number of device steps before each picture, which is printed too, does not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from pathlib import Path

import studio
from studio.engine.events import Finished, Started


def measure(count: int, steps: int, home: str) -> dict[str, object]:
    """Ask for pictures at once, as one client."""
    guard, came, started = threading.Lock(), [], []
    with studio.Studio(home=home, trace=Path(home) / "trace.json", device="cpu") as host:
        host.generate("image", prompt="warm up", steps=2, seed=99)
        begun = time.perf_counter()
        tickets = [host.submit("image", prompt="a red apple", steps=steps, seed=seed) for seed in range(count)]

        def listen(number: int):
            def hear(event: object) -> None:
                with guard:
                    if isinstance(event, Finished):
                        came.append((number, time.perf_counter() - begun))
                    elif isinstance(event, Started):
                        started.append(number)

            return hear

        for number, ticket in enumerate(tickets):
            ticket.listen(listen(number))
        for ticket in tickets:
            ticket.result()
    spans = [json.loads(line.rstrip(",\n")) for line in (Path(home) / "trace.json").read_text().splitlines()[2:-1]]
    widths = [each["args"]["width"] for each in spans if each["name"] == "step"][2:]
    seconds = [at for _, at in came]
    return {
        "pictures": count,
        "steps each": steps,
        "steps of the device": len(widths),
        "median width": statistics.median(widths),
        "first_s": round(seconds[0], 2),
        "median_s": round(statistics.median(seconds), 2),
        "last_s": round(seconds[-1], 2),
        "first in parts of the whole": round(seconds[0] / seconds[-1], 3),
        "out of order by at most": max(abs(place - number) for place, (number, _) in enumerate(came)),
    }


def main() -> None:
    """Measure once, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=28)
    parser.add_argument("--steps", type=int, default=8)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        print(json.dumps(measure(args.count, args.steps, home), indent=1))


if __name__ == "__main__":
    main()
