"""The worker: a thread that takes queued jobs in turn, starts them, and commits how they end.

One process owns a data folder's jobs. Between clients the one with the fewest running jobs is next; the engine shares
the device among those that run. Interactive and background jobs have places of their own, so that neither class waits
for the other to start.

Jobs that were running when their process died are queued again, in their old place. A job in which the process died
three times in a row, without a saved state in between, is quarantined: it is taken to be the cause. Before its third
attempt a job runs without others, so that only the cause is suspected. With a supervisor only deaths that it saw count.

Try it: ``studio jobs run``
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from studio.errors import StoreError, StudioError, UsageError, describe
from studio.jobs.database import Database
from studio.jobs.feed import PER_ATTEMPT, Feed
from studio.jobs.job import Job, JobError, JobEvent, JobPosition, JobState
from studio.jobs.running import Outcome, Running, forget_states, start, states_of, write
from studio.jobs.supervisor import Supervisor
from studio.jobs.tables import Transaction

if TYPE_CHECKING:
    from studio.api import Studio

MOST_RUNNING = 32  # of each priority
MOST_CRASHES = 3
_POLL_S = 0.05  # how soon jobs of other processes are seen
_PROGRESS_S = 0.5  # how often progress is written
_TAKEOVER_S = 10.0  # how long a new worker waits for the last one to end
_SAVING_S = 5.0  # how long closing waits for running jobs to be saved
_AGAIN_S = 1.0  # after the database could not be used


@dataclass(eq=False)
class _Attempt:
    """A job that this process runs. `written` is the progress in the database."""

    job: Job
    feed: Feed
    running: Running | None = None
    outcome: Outcome | None = None
    final: tuple[Job, int] | None = None  # how it ended, and the number of the event that says so
    written: JobPosition | None = None
    asked: str = ""  # pause, cancel, or close: saved and queued again

    @property
    def job_now(self) -> Job:
        """The job, as it ended if it has."""
        return self.job if self.final is None else self.final[0]


class JobsWorker:
    """Runs the jobs of a database on a `Studio`.

    `ended` is called with each job that has ended. `problem` is the error that keeps the worker from working, such as a
    full disk, until that is over.
    """

    def __init__(
        self, studio: Studio, database: Database, supervisor: Supervisor | None, ended: Callable[[Job], None]
    ) -> None:
        self.problem: StudioError | None = None
        self._studio, self._database, self._supervisor, self._tell = studio, database, supervisor, ended
        self._attempts: dict[str, _Attempt] = {}
        self._inbox: queue.SimpleQueue[tuple[str, Outcome] | None] = queue.SimpleQueue()
        self._progress_written = 0.0
        self._closing, self._closes_until = False, 0.0
        self._ended, self._turning = threading.Condition(), threading.Lock()
        self._thread = threading.Thread(target=self._run, name="studio-jobs", daemon=True)

    def start(self) -> None:
        """Own the database, recover what the last process left, and begin. Raises UsageError if another process runs
        the jobs.
        """
        note = json.dumps({"pid": os.getpid(), "supervised": self._supervisor is not None})
        until = time.monotonic() + _TAKEOVER_S
        while (before := self._database.own(note)) is None:
            if time.monotonic() > until:
                hint = "it runs yours too; stop it first, or choose another data folder with `--home`"
                raise UsageError("another process runs the jobs of this data folder", hint=hint)
            time.sleep(_POLL_S)
        self._recover(before)
        self._thread.start()

    def wake(self) -> None:
        """Look at the database now."""
        self._inbox.put(None)

    def feed(self, id: str) -> Feed | None:
        """The events of a running job."""
        attempt = self._attempts.get(id)
        return None if attempt is None else attempt.feed

    def drain(self, timeout: float | None) -> bool:
        """Wait until no job is queued or running; False if some are after `timeout` seconds."""
        until = None if timeout is None else time.monotonic() + timeout
        while until is None or time.monotonic() < until:
            with self._ended:
                self._ended.wait(_POLL_S)
            if not self._attempts:
                with self._turning, self._database.reading() as tables:  # the turn has told what ended
                    if not tables.count((JobState.QUEUED, JobState.RUNNING)):
                        return True
        return False

    def close(self) -> None:
        """Stop: the states of running jobs are saved, and the jobs are queued again. Jobs in a step that does not end
        are left to the next worker.
        """
        self._closes_until = time.monotonic() + _SAVING_S
        self._closing = True
        self.wake()
        if self._thread.is_alive():
            self._thread.join(2 * _SAVING_S)

    def _recover(self, before: str) -> None:
        """Queue the jobs that were running when their process died."""
        crash = "" if self._supervisor is None else self._supervisor.crash
        counts = bool(crash) or not _was_supervised(before)

        def recover(tables: Transaction) -> list[Job]:
            found = [self._recovered(job, counts, crash or "it was killed") for job in tables.jobs([JobState.RUNNING])]
            for job in found:
                tables.save(job)
                tables.add_events(job.id, [state_event(job, tables.last_number(job.id) + 1)])
            return found

        for job in self._database.commit(recover):
            self._tell_ended(job)

    def _recovered(self, job: Job, counts: bool, reason: str) -> Job:
        progressed = any(path.stat().st_mtime > (job.started or 0) for path in states_of(self._studio.home, job.id))
        crashes = (0 if progressed else job.crashes) + 1 if counts else 0
        job = job.model_copy(update={"crashes": crashes, "progress": None})
        if job.asked == "cancel":
            return _ended(job, JobState.CANCELLED)
        if crashes >= MOST_CRASHES:
            message = f"its process died {crashes} times while it ran: {reason}"
            error = JobError(title="Quarantined", message=message, hint=f"`studio jobs retry {job.id}` runs it again")
            return _ended(job.model_copy(update={"error": error}), JobState.QUARANTINED)
        state = JobState.PAUSED if job.asked == "pause" else JobState.QUEUED
        return job.model_copy(update={"state": state, "asked": ""})

    def _run(self) -> None:
        while True:
            self._collect()
            if self._supervisor is not None:
                self._supervisor.check()
            try:
                with self._turning:
                    self._turn()
                self.problem = None
            except StudioError as error:  # a full disk, say: nothing was committed, so the next turn does it all
                self.problem = error
                time.sleep(_AGAIN_S)
            except Exception as error:
                self.problem = StudioError(f"the jobs' worker failed: {describe(error)}")
                time.sleep(_AGAIN_S)
            if self._closing and not self._attempts:
                return

    def _collect(self) -> None:
        """Wait a moment for news, and note how attempts ended."""
        try:
            news = self._inbox.get(timeout=_POLL_S)
            while True:
                if news is not None and (attempt := self._attempts.get(news[0])) is not None:
                    attempt.outcome = news[1]
                news = self._inbox.get_nowait()
        except queue.Empty:
            return

    def _turn(self) -> None:
        """Commit what has happened, take the next jobs, and act on what was asked."""
        if not self._database.still_own():
            raise StoreError("another process runs the jobs now", hint="stop one of the two")
        if self._closing:
            self._stop_all()
        ended = [attempt for attempt in self._attempts.values() if attempt.outcome is not None]
        progress = self._progress()
        with self._database.reading() as tables:
            asked = tables.jobs([JobState.RUNNING], asked=True)
            waiting = not self._closing and any(
                self._free(each) and tables.clients(background=each) for each in (False, True)
            )
        taken: list[Job] = []
        if ended or progress or waiting:
            for attempt in ended:
                attempt.final = attempt.final or self._final(attempt)
            taken = self._database.commit(lambda tables: self._commit(tables, ended, progress))
        for attempt in ended:
            self._close(attempt)
        for attempt, position in progress:
            attempt.written = position
        for job in asked:
            if job.id in self._attempts:
                self._stop(self._attempts[job.id], job.asked)
        for job in taken:
            self._begin(job)
        for attempt in ended:
            self._tell_ended(attempt.job_now)
        if ended:
            with self._ended:
                self._ended.notify_all()

    def _commit(
        self,
        tables: Transaction,
        ended: list[_Attempt],
        progress: list[tuple[_Attempt, JobPosition]],
    ) -> list[Job]:
        gone = {attempt.job.id for attempt in ended}
        for attempt in ended:
            assert attempt.final is not None
            job, number = attempt.final
            if not job.state.ended and tables.get(job.id).asked == "cancel":  # since it was paused
                job = _ended(job, JobState.CANCELLED)
                attempt.final = job, number
            tables.save(job)
            tables.add_events(job.id, [state_event(job, number)])
        for attempt, position in progress:
            if attempt.job.id not in gone:
                tables.save(tables.get(attempt.job.id).model_copy(update={"progress": position}))
        return [] if self._closing else self._take(tables, gone)

    def _final(self, attempt: _Attempt) -> tuple[Job, int]:
        """The job as its attempt left it, and the number of the event that says so. Outputs are written first."""
        outcome, job = attempt.outcome, attempt.job
        assert outcome is not None
        artifacts, notices, failed = write(job, outcome, self._studio.home)
        state = outcome.state
        if state is JobState.CANCELLED and attempt.asked != "cancel":
            state = JobState.PAUSED if attempt.asked == "pause" else JobState.QUEUED
        if failed is not None and state is JobState.DONE:
            state = JobState.FAILED
        found = {
            "error": outcome.error or failed, "artifacts": tuple(artifacts), "values": outcome.values,
            "notices": (*outcome.notices, *notices), "progress": None, "asked": "",
        }  # fmt: skip
        if state.ended:
            job = _ended(job.model_copy(update=found), state)
        else:
            position = attempt.running.progress if attempt.running else None
            job = job.model_copy(
                update={"state": state, "progress": position, "asked": "", "notices": found["notices"]}
            )
        return job, attempt.feed.reserve()

    def _close(self, attempt: _Attempt) -> None:
        """Publish how an attempt ended, now that it is in the database."""
        assert attempt.final is not None
        job, number = attempt.final
        attempt.feed.add(state_event(job, number), number=number)
        del self._attempts[job.id]
        attempt.feed.close()

    def _tell_ended(self, job: Job) -> None:
        """Tell that a job has ended, if it has. A failed job keeps the state that the engine has kept, for a retry."""
        if not job.state.ended:
            return
        if job.state is not JobState.FAILED:
            forget_states(self._studio.home, job.id)
        if self._supervisor is not None:
            self._supervisor.ended()
        self._tell(job)

    def _free(self, background: bool) -> int:
        """How many more jobs of a priority may run, before those that end in this turn."""
        return MOST_RUNNING - sum(
            each.job.background == background and each.outcome is None for each in self._attempts.values()
        )

    def _progress(self) -> list[tuple[_Attempt, JobPosition]]:
        """The progress to write, at most twice a second."""
        now = time.monotonic()
        if now - self._progress_written < _PROGRESS_S:
            return []
        self._progress_written = now
        return [
            (each, found)
            for each in self._attempts.values()
            if each.running is not None and (found := each.running.progress) is not None and found != each.written
        ]

    def _take(self, tables: Transaction, gone: set[str]) -> list[Job]:
        """Mark the next queued jobs as running."""
        running = [each.job for each in self._attempts.values() if each.job.id not in gone]
        taken: list[Job] = []
        if any(_suspect(job) for job in running):
            return []
        for background in (False, True):
            mine = [job for job in running if job.background == background]
            if (free := MOST_RUNNING - len(mine)) <= 0:
                continue
            heads = {
                client: tables.jobs([JobState.QUEUED], client, background=background, by_order=True, limit=free)
                for client in tables.clients(background=background)
            }
            counts = Counter(job.client for job in mine)
            for _ in range(free):
                ready = [client for client, jobs in heads.items() if jobs]
                if not ready:
                    break
                client = min(ready, key=lambda each: (counts[each], heads[each][0].order))
                taken.append(heads[client].pop(0))
                counts[client] += 1
        if suspects := [job for job in taken if _suspect(job)]:
            taken = [] if running else suspects[:1]
        return [self._taken(tables, job) for job in taken]

    def _taken(self, tables: Transaction, job: Job) -> Job:
        update = {"state": JobState.RUNNING, "attempts": job.attempts + 1, "started": time.time(), "error": None}
        job = job.model_copy(update=update)
        tables.save(job)
        tables.add_events(job.id, [state_event(job, job.attempts * PER_ATTEMPT)])
        return job

    def _begin(self, job: Job) -> None:
        """Start an attempt at a job that is marked as running."""
        feed = Feed(job.attempts * PER_ATTEMPT)
        feed.add(state_event(job, 0))
        attempt = self._attempts[job.id] = _Attempt(job, feed)
        try:
            attempt.running = start(self._studio, self._database, job, feed, self._hear)
        except StudioError as error:
            self._hear(job.id, Outcome(JobState.FAILED, error=JobError.of(error)))
        except Exception as error:  # a plugin's class may raise anything
            self._hear(job.id, Outcome(JobState.FAILED, error=JobError.of(StudioError(describe(error)))))

    def _hear(self, id: str, outcome: Outcome) -> None:
        self._inbox.put((id, outcome))

    def _stop(self, attempt: _Attempt, asked: str) -> None:
        """Cancel an attempt, or save its state and end it, once each."""
        if attempt.running is None or attempt.asked in (asked, "cancel") or (attempt.asked and asked == "close"):
            return
        attempt.asked = asked
        attempt.running.stop(pause=asked != "cancel")

    def _stop_all(self) -> None:
        late = time.monotonic() > self._closes_until
        for attempt in self._attempts.values():
            self._stop(attempt, "close")
            if late and attempt.running is not None:  # it cannot be saved, or a step is long
                attempt.running.stop(pause=False)


def _suspect(job: Job) -> bool:
    return job.crashes >= MOST_CRASHES - 1


def _ended(job: Job, state: JobState) -> Job:
    return job.model_copy(update={"state": state, "ended": time.time(), "asked": ""})


def state_event(job: Job, number: int) -> JobEvent:
    """The event that says which state a job has, why, and its outputs."""
    data = {
        "state": job.state.value,
        "error": None if job.error is None else job.error.model_dump(),
        "artifacts": [each.model_dump() for each in job.artifacts],
    }
    return JobEvent(number, "state", data)


def _was_supervised(note: str) -> bool:
    try:
        found = json.loads(note)
    except ValueError:
        return False
    return isinstance(found, dict) and bool(found.get("supervised"))
