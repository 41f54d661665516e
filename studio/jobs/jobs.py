"""Jobs: work that outlives the process. What is accepted is done, whatever is killed meanwhile.

Any process may add jobs and look at them; `start` makes this one run them. Everything is in the database, so that a job
is cancelled, paused or moved from any process.

Try it: ``studio jobs add image "a red apple" && studio jobs run``
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from studio.errors import Busy, InputError, UsageError
from studio.files import read_limited
from studio.jobs.database import Database
from studio.jobs.feed import Feed
from studio.jobs.job import ENDED, Job, JobEvent, JobPosition, JobState, Work, WorkflowWork, digest, seed_of
from studio.jobs.running import forget_states, graph_of, inputs_of
from studio.jobs.supervisor import Supervisor
from studio.jobs.tables import Transaction
from studio.jobs.worker import JobsWorker, state_event
from studio.spec import JobSpec, Priority
from studio.workflow.document import MAX_BYTES
from studio.workflow.shipped import find

if TYPE_CHECKING:
    from studio.api import Studio
    from studio.errors import StudioError

URL_VARIABLE = "STUDIO_JOBS_URL"
MAX_QUEUED = 10_000
MAX_KEY = 200  # characters
MOST_NUMBER = 2**63 - 1  # of an event, in the database
_POLL_S = 0.1  # for the events of jobs that another process runs
_WAITING = (JobState.QUEUED, JobState.PAUSED)


class Jobs:
    """The jobs of a data folder. A context manager; safe to use from any thread.

    Args:
        studio: whose generators, engines and store are used. Close the Jobs before it.
        url: an SQLAlchemy URL, such as ``postgresql+psycopg://user:password@host/name`` (default: ``$STUDIO_JOBS_URL``,
            else the file `jobs.sqlite` in the data folder).
        max_queued: how many jobs may be queued or paused; more are refused with Busy.

    Raises StoreError if the database is damaged, of a newer version, or cannot be used.
    """

    def __init__(self, studio: Studio, url: str | None = None, *, max_queued: int = MAX_QUEUED) -> None:
        self.studio = studio
        self._database = Database(studio.home, url or os.environ.get(URL_VARIABLE) or None)
        self._max_queued = max_queued
        self._worker: JobsWorker | None = None

    def start(self, supervisor: Supervisor | None = None, *, ended: Callable[[Job], None] = lambda _: None) -> None:
        """Run the queued jobs in this process, until `close`; `supervisor` looks after it (see `supervise`). `ended` is
        called in another thread with each job that has ended. Raises UsageError if another process runs them already.
        """
        if self._worker is None:
            worker = JobsWorker(self.studio, self._database, supervisor, ended)
            worker.start()
            self._worker = worker

    @property
    def problem(self) -> StudioError | None:
        """What keeps jobs from running at the moment, such as a full disk, or None."""
        return None if self._worker is None else self._worker.problem

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until no job is queued or running; False if some are after `timeout` seconds. Only after `start`."""
        assert self._worker is not None
        return self._worker.drain(timeout)

    def spec(self, generator: str, /, *, key: str | None = None, **values: Any) -> JobSpec:
        """A JobSpec for `add` from a generator's inputs and options, as `Studio.submit` takes them; its media are put
        into the store. With an idempotency key the default seed is derived from it, so that equal calls are equal.
        Raises like `Studio.submit`.
        """
        if key is not None and values.get("seed") is None:
            values["seed"] = seed_of(key)
        request = self.studio.request(generator, **values)
        for media in request.inputs.media():
            self.studio.store.put(media.attach(None, None))
        return request.spec

    def workflow(self, file: Path | str, values: dict[str, Any], **options: Any) -> WorkflowWork:
        """A WorkflowWork for `add` from a file or the name of a built-in workflow, and the workflow's inputs, as
        `Studio.run` takes them; `options` are its other fields. Raises like `Studio.run`.
        """
        path = find(file).resolve()
        graph = self.studio.workflow(path)
        inputs = graph.Inputs.parse(values)
        for media in inputs.media():
            self.studio.store.put(media.attach(None, None))
        given = inputs.model_dump(mode="json", include=inputs.model_fields_set)
        return WorkflowWork(
            document=read_limited(path, MAX_BYTES).decode("utf-8-sig"), file=str(path), inputs=given, **options
        )

    def add(
        self, work: Work, *, key: str | None = None, client: str | None = None, priority: Priority | None = None
    ) -> Job:
        """Accept a job: when this returns, the job is on disk. `client` and `priority` replace the work's own.

        With an idempotency `key`, a client that adds the same work again gets the job that is already there. Raises
        UsageError if the key has other work, Busy if too many jobs are queued, and for work that cannot run what
        `Studio.submit` or `Studio.run` would raise.
        """
        changes: dict[str, Any] = {"client": client, "priority": priority}
        work = work.model_copy(update={name: value for name, value in changes.items() if value is not None})
        if key is not None and not 0 < len(key) <= MAX_KEY:
            raise InputError("key", f"the idempotency key has {len(key)} characters; 1 to {MAX_KEY} are allowed")
        self._check(work)
        job = self._database.commit(lambda tables: self._add(tables, work, key))
        self._wake()
        return job

    def _check(self, work: Work) -> None:
        """Refuse what cannot run."""
        if isinstance(work, JobSpec):
            if not work.stored:
                raise InputError("stored", "`stored` is false, but the output of a job is always stored")
            self.studio.request(work)
        else:
            inputs_of(self.studio.store, graph_of(self.studio, work), work)

    def _add(self, tables: Transaction, work: Work, key: str | None) -> Job:
        if key is not None and (known := tables.by_key(work.client, key)) is not None:
            if digest(known.work) != digest(work):
                message = f"conflict: the idempotency key `{key[:60]}` belongs to another job with other work"
                raise UsageError(message, hint="use a new key for new work")
            return known
        if (queued := tables.count(_WAITING)) >= self._max_queued:
            message = f"{queued:,} jobs are queued, and at most {self._max_queued:,} may be"
            raise Busy(message, hint="wait until some have ended, or cancel some")
        job = Job(
            id=secrets.token_hex(8), work=work, client=work.client, priority=work.priority, key=key,
            order=tables.edge(first=False) + 1, created=time.time(),
        )  # fmt: skip
        tables.add(job)
        tables.add_events(job.id, [state_event(job, 1)])
        return job

    def get(self, id: str) -> Job:
        """The job as it is now. Raises UnknownName."""
        with self._database.reading() as tables:
            return tables.get(id)

    def list(
        self, state: JobState | None = None, client: str | None = None, limit: int = 100, after: str | None = None
    ) -> list[Job]:
        """The jobs, newest first; `after` is the id of the last job of the page before. Raises UnknownName."""
        with self._database.reading() as tables:
            last = None if after is None else tables.get(after)
            return tables.jobs([] if state is None else [state], client, after=last, limit=limit)

    def events(self, id: str, after: int = 0) -> Iterator[JobEvent]:
        """Yield the events of a job with a number above `after`, waiting for new ones, until the job has ended.

        Events of a job that ended, or that another process runs, are those of the database: its states, and its
        progress twice a second, without numbers of their own. Previews, text and notices are live. Raises UnknownName.
        """
        follower = _Follower(self, id, after)
        while not follower.over:
            yield from follower.look()
            if feed := follower.waits():
                feed.wait(follower.after, _POLL_S)
            elif not follower.over:
                time.sleep(_POLL_S)

    async def events_async(self, id: str, after: int = 0) -> AsyncIterator[JobEvent]:
        """The same in a coroutine of any event loop."""
        follower = _Follower(self, id, after)
        while not follower.over:
            for event in await asyncio.to_thread(follower.look):
                yield event
            if feed := follower.waits():
                await feed.wait_async(follower.after, _POLL_S)
            elif not follower.over:
                await asyncio.sleep(_POLL_S)

    def wait(self, id: str, timeout: float | None = None) -> Job:
        """Wait until a job has ended. Raises UnknownName, or TimeoutError (`timeout` in seconds)."""
        until = None if timeout is None else time.monotonic() + timeout
        while not (job := self.get(id)).state.ended:
            if until is not None and time.monotonic() > until:
                raise TimeoutError(f"the job `{id}` is not done after {timeout:g} s")
            feed = self._worker.feed(id) if self._worker else None
            if feed is None:
                time.sleep(_POLL_S / 4)
            else:
                feed.wait_over(_POLL_S)
        return job

    def cancel(self, id: str) -> Job:
        """Cancel a job; a running one ends within a step, and one that has ended stays as it is. Raises UnknownName."""

        def change(tables: Transaction, job: Job) -> Job:
            if job.state is JobState.RUNNING:
                return job.model_copy(update={"asked": "cancel"})
            if job.state.ended:
                return job
            return job.model_copy(update={"state": JobState.CANCELLED, "ended": time.time()})

        job = self._change(id, change)
        if job.state is JobState.CANCELLED:
            forget_states(self.studio.home, id)
        return job

    def pause(self, id: str) -> Job:
        """Pause a job: a queued one is not started; of a running one the state is saved to disk and the memory freed,
        within a step. Raises UnknownName, and UsageError if it has ended.
        """

        def change(tables: Transaction, job: Job) -> Job:
            self._not_ended(job, "paused")
            if job.state is JobState.RUNNING:
                return job if job.asked else job.model_copy(update={"asked": "pause"})
            return job.model_copy(update={"state": JobState.PAUSED})

        return self._change(id, change)

    def resume(self, id: str) -> Job:
        """Queue a paused job again, in its place; it continues from its saved state. Raises UnknownName, and UsageError
        if it is not paused.
        """

        def change(tables: Transaction, job: Job) -> Job:
            if job.state is not JobState.PAUSED:
                raise UsageError(f"the job `{id}` is {job.state}, not paused", hint=_hint(job))
            return job.model_copy(update={"state": JobState.QUEUED})

        return self._change(id, change)

    def retry(self, id: str) -> Job:
        """Queue a failed, cancelled or quarantined job again. Raises UnknownName, and UsageError for others."""

        def change(tables: Transaction, job: Job) -> Job:
            if not job.state.ended or job.state is JobState.DONE:
                raise UsageError(f"the job `{id}` is {job.state}, so it cannot be retried", hint=_hint(job))
            cleared = {"state": JobState.QUEUED, "error": None, "crashes": 0, "ended": None, "artifacts": ()}
            return job.model_copy(update={**cleared, "values": {}, "notices": ()})

        return self._change(id, change)

    def move(self, id: str, *, first: bool = False, before: str | None = None) -> Job:
        """Move a queued or paused job to the front of the queue, or before another job; clients still take turns.
        Raises UnknownName, and UsageError if it does not wait.
        """
        if first == (before is not None):
            raise UsageError("a job is moved either to the front or before another job", hint="give one of the two")

        def change(tables: Transaction, job: Job) -> Job:
            if job.state not in _WAITING:
                raise UsageError(f"the job `{id}` is {job.state}, so it cannot be moved", hint=_hint(job))
            if before is None:
                return job.model_copy(update={"order": tables.edge(first=True) - 1})
            other = tables.get(before)
            if other.id == job.id:
                return job
            place = tables.place_before(other, job)
            if place is None:  # numbers have run out between the two
                tables.renumber()
                place = tables.place_before(tables.get(before), job)
            return job.model_copy(update={"order": place})

        return self._change(id, change)

    def prune(self, older_than: float = 0.0, keep: int = 0) -> int:
        """Delete ended jobs that ended more than `older_than` seconds ago, except the `keep` latest; return how many.
        Their outputs stay in the store.
        """

        def remove(tables: Transaction) -> list[str]:
            ended = sorted(tables.jobs(ENDED), key=lambda job: job.ended or 0.0, reverse=True)
            old = [job.id for job in ended[keep:] if time.time() - (job.ended or 0.0) >= older_than]
            for start in range(0, len(old), 500):
                tables.remove(old[start : start + 500])
            return old

        removed = self._database.commit(remove)
        for id in removed:
            forget_states(self.studio.home, id)
        return len(removed)

    def close(self) -> None:
        """Stop running jobs (they are saved and queued again) and close the database."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _change(self, id: str, change: Callable[[Transaction, Job], Job]) -> Job:
        """Replace a job by what `change` returns, with an event if its state is another."""

        def work(tables: Transaction) -> Job:
            job = tables.get(id)
            changed = change(tables, job)
            if changed != job:
                tables.save(changed)
            if changed.state is not job.state:
                tables.add_events(id, [state_event(changed, tables.last_number(id) + 1)])
            return changed

        changed = self._database.commit(work)
        self._wake()
        return changed

    def _not_ended(self, job: Job, what: str) -> None:
        if job.state.ended:
            raise UsageError(f"the job `{job.id}` is {job.state}, so it cannot be {what}", hint=_hint(job))

    def _wake(self) -> None:
        if self._worker is not None:
            self._worker.wake()


class _Follower:
    """What a reader of a job's events has seen: those up to the number `after`; `over` when no more come."""

    def __init__(self, jobs: Jobs, id: str, after: int) -> None:
        self.after, self.over = min(after, MOST_NUMBER), False
        self._jobs, self._id = jobs, id
        self._shown: JobPosition | None = None

    def waits(self) -> Feed | None:
        """The feed whose next event is waited for, if this process runs the job."""
        return None if self.over or self._jobs._worker is None else self._jobs._worker.feed(self._id)

    def look(self) -> Sequence[JobEvent]:
        """The next events. Raises UnknownName."""
        feed = self.waits()
        if feed is not None and self.after >= feed.first:
            return self._seen(feed.after(self.after))
        with self._jobs._database.reading() as tables:
            job = tables.get(self._id)
            stored = tables.events(self._id, self.after)
        if feed is not None:
            live = feed.after(max(self.after, feed.first - 1))
            return self._seen([*(each for each in stored if each.number < feed.first), *live])
        self.over = job.state.ended
        found = self._seen(stored)
        if job.progress is None or job.progress == self._shown:
            return found
        self._shown = job.progress
        return [*found, JobEvent(self.after, "progress", job.progress.model_dump())]

    def _seen(self, events: Sequence[JobEvent]) -> Sequence[JobEvent]:
        self.after = events[-1].number if events else self.after
        return events


def _hint(job: Job) -> str:
    """The remedy for a job in the wrong state."""
    if job.state is JobState.RUNNING:
        return "wait, or cancel it"
    if job.state is JobState.DONE:
        return "add it again as a new job"
    if job.state.ended:
        return f"`studio jobs retry {job.id}` runs it again"
    return f"`studio jobs show {job.id}` describes it"
