"""Random kill -9 of the process that runs jobs: is an accepted job lost, stuck, done twice, or other than it should be?

    python benchmarks/kills.py --kills 60 [--models] [--url postgresql+psycopg://…]

Jobs of several kinds and workflows are added all the time, by another process. The worker (`studio jobs run`) is
killed at random moments while jobs run: its supervisor, both, or the process that works. At the end every job must be
done, its output equal to that of an uninterrupted run, its `-o` file written, and no node of a workflow run again once
it was committed. `--models` adds pictures and texts of the built-in models. Prints a JSON object; the exit code is 1 if
anything is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

import studio
from studio.destination import Destination
from studio.jobs import Jobs, JobState, WorkflowWork

PLUGIN = Path(__file__).with_name("kills_plugin.py")
NODES = 6
FLOW = f"""
inputs:
  name: {{type: text}}
  file: {{type: text}}
nodes:
  many: {{use: counted, repeat: {NODES}, inputs: {{text: "${{name}} ${{number}}", file: "${{file}}"}}}}
  walk: {{use: walker, inputs: {{count: 120}}}}
  last: {{use: counted, map: "${{many}}", inputs: {{text: "last ${{item}}", file: "${{file}}"}}}}
outputs: {{many: "${{many}}", walk: "${{walk}}", last: "${{last}}"}}
"""
STUCK_S = 30.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--longest", type=float, default=4.0, help="seconds from the start of a job to a kill, at most")
    parser.add_argument("--queued", type=int, default=6, help="jobs that wait or run at each time")
    parser.add_argument("--models", action="store_true")
    parser.add_argument("--url", default="")
    found = run(**vars(parser.parse_args()))
    print(json.dumps(found, indent=2))
    return int(bool(found["wrong"]))


def run(
    kills: int, seed: int = 1, longest: float = 4.0, queued: int = 6, models: bool = False, url: str = ""
) -> dict[str, object]:
    """Kill the worker so often; return what was counted, and what was `wrong`."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["STUDIO_JOBS_URL"] = url
        host = studio.Studio(home=Path(folder, "home"), device="cpu", plugins=[PLUGIN])
        with host, Jobs(host) as jobs:
            return Kills(Path(folder), jobs, random.Random(seed), queued, models).run(kills, longest)


class Kills:
    def __init__(self, folder: Path, jobs: Jobs, chance: random.Random, queued: int, models: bool) -> None:
        self.folder, self.jobs, self.chance, self.queued, self.models = folder, jobs, chance, queued, models
        self.added: dict[str, tuple[str, Path | None]] = {}
        self.committed: list[tuple[float, set[str]]] = []
        self.calls = folder / "calls"
        self.longest_wait = 0.0
        self.ends: list[str] = []

    def run(self, kills: int, longest: float) -> dict[str, object]:
        begun, worker, ways = time.monotonic(), None, {"supervisor": 0, "both": 0, "worker": 0}
        for _ in range(kills):
            self.top_up()
            if worker is None or worker.poll() is not None:
                worker = self.start()
            self.wait_for_work(worker)
            time.sleep(self.chance.uniform(0, longest))
            way = self.chance.choices([*ways], [9, 9, 2])[0]
            ways[way] += self.kill(worker, way)
            self.committed.append((time.time(), self.nodes()))
        if worker is not None and worker.poll() is None:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
        self.finish()
        suspects = [job.id for job in self.jobs.list(JobState.QUARANTINED, limit=10_000)]
        if suspects:  # by three kills of the worker only, which cannot be told from a job that ends its process
            for id in suspects:
                self.jobs.retry(id)
            self.finish()
        wrong = self.wrong()
        attempts = sum(self.jobs.get(id).attempts for id in self.added)
        return {
            "kills": ways, "jobs": len(self.added), "attempts": attempts, "quarantined": len(suspects),
            "nodes_committed": len(self.nodes()), "wrong": wrong, "seconds": round(time.monotonic() - begun),
        }  # fmt: skip

    def top_up(self) -> None:
        """Keep some jobs of each kind in the queue."""
        waiting = len(self.jobs.list(JobState.QUEUED)) + len(self.jobs.list(JobState.RUNNING))
        for _ in range(self.queued - waiting):
            number = len(self.added)
            kinds = ["walker", "counted", "flow", "file", *(["image", "text"] if self.models else [])]
            kind, target = kinds[number % len(kinds)], None
            if kind == "flow":
                work = WorkflowWork(
                    document=FLOW, inputs={"name": f"flow {number}", "file": str(self.calls)}, seed=number
                )
            elif kind == "counted":
                work = self.jobs.spec("counted", text=f"one {number}", file=str(self.calls), seed=number)
            elif kind == "image":
                work = self.jobs.spec("image", prompt="a red apple", steps=12, seed=number)
            elif kind == "text":
                work = self.jobs.spec("text", prompt="Once", max_tokens=60, seed=number)
            else:
                target = self.folder / f"{number}.txt" if kind == "file" else None
                place = Destination(target).as_json(self.jobs.studio.home) if target else None
                work = self.jobs.spec("walker", count=self.chance.randrange(50, 400), seed=number, destination=place)
            client = self.chance.choice(["", "ann", "bob"])
            self.added[self.jobs.add(work, key=f"{number}", client=client).id] = (kind, target)

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "studio", "--home", str(self.jobs.studio.home), "--plugin", str(PLUGIN),
                   "--device", "cpu", "-q", "jobs", "run"]  # fmt: skip
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def wait_for_work(self, worker: subprocess.Popen[bytes]) -> None:
        """Return when a job has been started since now: a kill before that would try nothing."""
        begun, until = time.time(), time.monotonic() + STUCK_S
        while worker.poll() is None and time.monotonic() < until:
            if any((job.started or 0) > begun for job in self.jobs.list(limit=100)):
                return
            time.sleep(0.02)

    def kill(self, worker: subprocess.Popen[bytes], way: str) -> int:
        if worker.poll() is not None:
            return 0
        if way == "worker":
            children = psutil.Process(worker.pid).children()
            for child in children:
                child.kill()
            return len(children)
        (os.killpg if way == "both" else os.kill)(worker.pid, signal.SIGKILL)
        worker.wait()
        return 1

    def finish(self) -> None:
        """Run what is left, without kills; a job that makes no progress for long is stuck."""
        worker, last, since = self.start(), "", time.monotonic()
        while worker.poll() is None:
            now = json.dumps([job.model_dump(mode="json") for job in self.jobs.list(limit=10_000)])
            if now != last:
                last, since = now, time.monotonic()
            self.longest_wait = max(self.longest_wait, time.monotonic() - since)
            if time.monotonic() - since > STUCK_S:
                os.killpg(worker.pid, signal.SIGKILL)
            time.sleep(0.2)
        if worker.returncode not in (0, 1):  # 1: of a quarantined job
            self.ends.append(f"the worker ended with {worker.returncode}: {(self.folder / 'log').read_text()[-2000:]}")

    def nodes(self) -> set[str]:
        """The hashes of what committed nodes have made."""
        with self.jobs._database.reading() as tables:
            return tables.node_hashes()

    def wrong(self) -> list[str]:
        found = [f"the worker stood still for {self.longest_wait:.0f} s"] if self.longest_wait > STUCK_S else []
        works = [work for id in self.added if not isinstance(work := self.jobs.get(id).work, WorkflowWork)]
        tickets = {
            work.to_json(): self.jobs.studio.submit(work.model_copy(update={"destination": None})) for work in works
        }
        for id, (kind, target) in self.added.items():
            job = self.jobs.get(id)
            if job.state is not JobState.DONE:
                found.append(f"{kind} {id} is {job.state}: {job.error.message if job.error else ''}")
                continue
            expected = (
                [ticket.result().sha256] if (ticket := tickets.get(job.work.to_json())) else self.expected(job.work)
            )
            if [each.sha256 for each in job.artifacts] != expected:
                found.append(f"{kind} {id} has other bytes after {job.attempts} attempts")
            if target is not None and studio.Text(target.read_text()).sha256 != expected[0]:
                found.append(f"the file of {kind} {id} is wrong")
        return found + self.repeated() + self.ends

    def expected(self, work: WorkflowWork) -> list[str]:
        """The hashes of an uninterrupted run of a workflow in this process."""
        path = self.folder / "flow.yaml"
        path.write_text(work.document)
        inputs = {**work.inputs, "file": os.devnull}
        made = self.jobs.studio.run(path, inputs, seed=work.seed, fresh=True).outputs
        flat = [each for value in made.values() for each in (value if isinstance(value, list) else [value])]
        return [each.sha256 for each in flat]

    def repeated(self) -> list[str]:
        """Calls of nodes that were committed before a kill, after that kill."""
        found = []
        lines = [line.split(" ", 1) for line in self.calls.read_text().splitlines()]
        for moment, hashes in self.committed:
            late = {text for at, text in lines if float(at) > moment and studio.Text(text).sha256 in hashes}
            found += [f"`{text}` ran again" for text in late]
        return found


if __name__ == "__main__":
    sys.exit(main())
