"""The first benchmark to run on a GPU: correctness and speed, in at most eight minutes.

    python benchmarks/gpu.py                      # the first GPU; lines of JSON to gpu.jsonl and to standard output
    python benchmarks/gpu.py --parts facts unet   # some parts
    python benchmarks/gpu.py --device cpu --rehearse  # every line of it at tiny sizes, without a GPU

A line of JSON is written after each part, so an interrupted run keeps its results. Each part has a time limit; if one
fails or times out, its `error` says so, its results so far are kept, and the next part runs. All weights are random,
from seeds: nothing is downloaded. docs/gpu.md explains the expected results. Times are milliseconds unless a name ends
in `_s`; `launch` is until all work is queued, `run` until it is synchronized, `event` between two CUDA events.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import signal
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from gpu_parts.bench import Bench, Found, error_of
from gpu_parts.memory import loading, memory, mixed, offload
from gpu_parts.pictures import pictures, sdxl, steps, together, unet
from gpu_parts.right import attention, correct, facts, failures, lose, tests, waits
from gpu_parts.tokens import shapes, text, windows

from studio import devices

TOTAL_S = 470.0


class TimeUp(BaseException):
    """A part has used up its time."""


def breaks(bench: Bench, found: Found) -> None:
    """Of the rehearsal: a part that fails keeps what it found."""
    found["before"] = error_of(lambda: bench.randn(1, 1) @ bench.randn(2, 1), bench.randn(1))
    raise RuntimeError("as it should")


def overruns(bench: Bench, found: Found) -> None:
    """Of the rehearsal: a part that takes too long is ended."""
    found["before"] = 1
    time.sleep(60)


PARTS: Mapping[Callable[[Bench, Found], None], float] = {
    facts: 15, correct: 50, waits: 15, tests: 40, attention: 30, offload: 25, loading: 15, unet: 35, sdxl: 25,
    pictures: 35, steps: 20, text: 40, windows: 30, memory: 30, together: 20, shapes: 35, failures: 10,
}  # fmt: skip
REHEARSED: Mapping[Callable[[Bench, Found], None], float] = {breaks: 20, overruns: 0.2}
CHILDREN: Mapping[str, Callable[[Bench], str]] = {"lose": lose, "mixed": mixed}


def _ring(*_: object) -> None:
    raise TimeUp


def measure(part: Callable[[Bench, Found], None], bench: Bench, limit_s: float) -> Found:
    """Do a part within its time, whatever happens in it."""
    found: Found = {}
    begun = time.perf_counter()
    signal.setitimer(signal.ITIMER_REAL, max(0.01, limit_s))
    try:
        part(bench, found)
    except TimeUp:
        found["error"] = f"not done after {limit_s:.1f} s"
    except Exception as error:  # the next part may go well
        found["error"] = f"{type(error).__name__}: {error}"[:600]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return {"part": part.__name__, "seconds": round(time.perf_counter() - begun, 2), **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", help="such as cuda:0; the first GPU if not given")
    parser.add_argument("--parts", nargs="+", choices=[part.__name__ for part in PARTS], help="these alone")
    parser.add_argument("--out", type=Path, default=Path("gpu.jsonl"), help="the file that lines are added to")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, to see that every line of it runs")
    parser.add_argument("--child", choices=[*CHILDREN], help=argparse.SUPPRESS)
    asked = parser.parse_args()
    bench = Bench(devices.device(devices.choose(asked.device)), asked.rehearse)
    print(CHILDREN[asked.child](bench)) if asked.child else run(bench, asked.parts, asked.out)


def run(bench: Bench, names: Collection[str] | None, out: Path) -> None:
    """Do the parts, and write a line for each when it is done."""
    bench.device.enter()
    faulthandler.dump_traceback_later(bench.of(TOTAL_S + 10, 3600), exit=True)  # what hangs outside of Python
    signal.signal(signal.SIGALRM, _ring)
    end = time.perf_counter() + TOTAL_S
    parts = {part: limit_s for part, limit_s in PARTS.items() if names is None or part.__name__ in names}
    for part, limit_s in {**parts, **bench.of({}, REHEARSED)}.items():
        limit_s = bench.of(min(limit_s, end - time.perf_counter()), limit_s if part in REHEARSED else 900)
        line = json.dumps(measure(part, bench, limit_s), default=str)
        print(line, flush=True)
        with out.open("a") as file:
            file.write(line + "\n")
        bench.device.release_cached()
    faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main()
