"""How OpenMP threads wait: a picture in a new process with active, passive and chosen waiting, alternately.

python benchmarks/waiting.py                 # with the current load, then with four busy processes
    python benchmarks/waiting.py --busy 0 --rounds 7

Ratios are medians over rounds, so that other load affects all alike. `chosen` is Studio's
choice at start (`torch_setup.prepare`), with the number of threads that it chooses; the others use all cores.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile

CODE = """
import tempfile, time
import studio
with studio.Studio(home=tempfile.mkdtemp(), device="cpu") as host:
    begun = time.perf_counter()
    host.generate("image", prompt="a red apple", steps=8, seed=1)
    print(time.perf_counter() - begun)
"""
ALL = str(len(os.sched_getaffinity(0)))
WAYS = {
    "active": {"GOMP_SPINCOUNT": "300000", "STUDIO_THREADS": ALL},  # what OpenMP does by itself
    "passive": {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "STUDIO_THREADS": ALL},
    "chosen": {},
}


def picture(environment: dict[str, str]) -> float:
    """Seconds of a cold picture in a process of its own."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "STUDIO_"))}
    command = [sys.executable, "-c", CODE]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=folder, env={**clean, **environment}
        )
    return float(done.stdout)


def spin() -> None:
    """Keep a core busy."""
    while True:
        pass


def measure(busy: int, rounds: int) -> dict[str, object]:
    """Rounds beside so many busy processes."""
    others = [multiprocessing.Process(target=spin, daemon=True) for _ in range(busy)]
    for each in others:
        each.start()
    try:
        taken = [{name: picture(way) for name, way in WAYS.items()} for _ in range(rounds)]
    finally:
        for each in others:
            each.terminate()
    median = {name: round(statistics.median(each[name] for each in taken), 2) for name in WAYS}
    ratios = {
        f"{name} / active": round(statistics.median(each[name] / each["active"] for each in taken), 2)
        for name in ("passive", "chosen")
    }
    load = os.getloadavg()[0]
    return {"busy processes": busy, "load of the last minute": round(load, 1), "seconds": median, **ratios}


def main() -> None:
    """Measure, and print a line of JSON for each number of busy processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, nargs="*", default=[0, 4])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    for busy in args.busy:
        print(json.dumps(measure(busy, args.rounds)), flush=True)


if __name__ == "__main__":
    main()
