"""What durable jobs cost: jobs a second, the wait from submission to start, and whether memory stays constant.

    python benchmarks/jobs.py rate --jobs 800        # jobs that do nothing, at 80 a second and as fast as possible
    python benchmarks/jobs.py memory --jobs 2000 --cancels 1000
    python benchmarks/jobs.py disk                   # what the disk allows: commits a second

`--url postgresql+psycopg://…` uses that database. Prints a JSON object.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import tempfile
import threading
import time
from pathlib import Path

import psutil

import studio
from studio.jobs import Jobs, JobState

PACE = 80  # jobs a second
ADDERS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["rate", "memory", "disk"])
    parser.add_argument("--jobs", type=int, default=800)
    parser.add_argument("--cancels", type=int, default=1000)
    parser.add_argument("--url", default="")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.what == "disk":
            print(json.dumps({"commits_per_s": disk(Path(folder))}))
            return
        host = studio.Studio(home=Path(folder, "home"), device="cpu")
        with host, Jobs(host, given.url or None) as jobs:
            jobs.start()
            jobs.wait(jobs.add(jobs.spec("template", text="first", seed=0)).id)
            found = rate(jobs, given.jobs) if given.what == "rate" else memory(jobs, given.jobs, given.cancels)
    print(json.dumps(found, indent=2))


def rate(jobs: Jobs, count: int) -> dict[str, object]:
    """Jobs at a steady pace, by several threads as a server has them; then as fast as they are accepted."""
    begun, cpu = time.monotonic(), time.process_time()
    asked: dict[str, float] = {}

    def at_pace(adder: int) -> None:
        for index in range(adder, count, ADDERS):
            time.sleep(max(0.0, begun + index / PACE - time.monotonic()))
            now = time.time()
            asked[jobs.add(jobs.spec("template", text=f"job {index}", seed=index)).id] = now

    in_threads(at_pace)
    jobs.drain()
    took, cpu = time.monotonic() - begun, time.process_time() - cpu
    waits = sorted(job.started - asked[job.id] for job in jobs.list(limit=count + 1) if job.id in asked)
    begun = time.monotonic()

    def at_once(adder: int) -> None:
        for index in range(adder, count, ADDERS):
            jobs.add(jobs.spec("template", text=f"more {index}", seed=index))

    in_threads(at_once)
    accepted = time.monotonic() - begun
    jobs.drain()
    return {
        "jobs": count, "done": sum(job.state is JobState.DONE for job in jobs.list(limit=2 * count)),
        "paced_jobs_per_s": round(count / took, 1), "cpu_ms_per_job": round(1000 * cpu / count, 1),
        "submit_to_start_ms": {f"p{at}": round(1000 * waits[len(waits) * at // 100 - 1]) for at in (50, 95, 99)},
        "accepted_per_s": round(count / accepted, 1), "jobs_per_s": round(count / (time.monotonic() - begun), 1),
    }  # fmt: skip


def in_threads(work: object) -> None:
    threads = [threading.Thread(target=work, args=(adder,)) for adder in range(ADDERS)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()


def memory(jobs: Jobs, count: int, cancels: int) -> dict[str, object]:
    """Resident memory after each tenth of the jobs and of the cancelled jobs; the first tenth warms up."""
    sizes = []
    for _ in range(10):
        for index in range(count // 10):
            jobs.add(jobs.spec("template", text=f"job {index}", seed=index))
        for _ in range(cancels // 10):
            job = jobs.add(jobs.spec("template", text="cancelled", seed=1))
            jobs.cancel(job.id)
        jobs.drain()
        jobs.prune(keep=100)
        sizes.append(resident())
    warm = sizes[1:]
    return {"jobs": count, "cancels": cancels, "resident_mib": sizes,
            "change_percent": round(100 * (warm[-1] / warm[0] - 1), 2)}  # fmt: skip


def resident() -> float:
    gc.collect()
    return round(psutil.Process().memory_info().rss / 2**20, 1)


def disk(folder: Path) -> float:
    """Synced appends a second, one after another."""
    file = os.open(folder / "file", os.O_WRONLY | os.O_CREAT)
    begun, count = time.monotonic(), 200
    for _ in range(count):
        os.write(file, bytes(4096))
        os.fsync(file)
    os.close(file)
    return round(count / (time.monotonic() - begun), 1)


if __name__ == "__main__":
    main()
