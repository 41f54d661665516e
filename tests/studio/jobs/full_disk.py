"""Accept jobs until no file can grow, at many sizes; then let files grow again.

`full_disk.py FOLDER POINTS` prints a line of JSON for each point: how many jobs were accepted, what the error said, how
many of them are there afterwards, and how many are done in the end. A limit of the size of files is what any user can
set; its error is that of a full disk.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import studio
from studio.errors import StoreError
from studio.jobs import Jobs, JobState

PLUGIN = Path(__file__).with_name("plugin.py")


def limit(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def point(host: studio.Studio, size: int, *, run: bool) -> dict[str, object]:
    """Accept jobs until files reach a size."""
    with Jobs(host) as jobs:
        work, accepted, said = jobs.spec("note", text="a" * 1500, seed=1), [], ""
        limit(size)
        try:
            if run:
                jobs.start()
            for _ in range(200):
                accepted.append(jobs.add(work).id)
        except StoreError as error:
            said = error.message
        while run and jobs.problem is None and any(not jobs.get(id).state.ended for id in accepted):
            pass
        problem = "" if jobs.problem is None else jobs.problem.message
        limit(resource.RLIM_INFINITY)
        kept = sum(jobs.get(id).id == id for id in accepted)
        if run:
            jobs.add(work)
            jobs.drain()
        done = sum(job.state is JobState.DONE for job in jobs.list(limit=1000))
        return {"accepted": len(accepted), "said": said, "problem": problem, "kept": kept, "done": done}


def main(folder: Path, points: int) -> None:
    for number in range(points):
        home = folder / str(number)
        with studio.Studio(home=home, device="cpu", plugins=[PLUGIN]) as host:
            Jobs(host).close()  # the tables are there
            print(json.dumps(point(host, 60_000 + 4_099 * number, run=number % 4 == 0)), flush=True)


main(Path(sys.argv[1]), int(sys.argv[2]))
