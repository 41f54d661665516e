"""Running one job on a `Studio`: a request in an engine, or a workflow in a thread of its own.

Its state is saved while it runs, under the job's id, and the next attempt continues from there. A workflow's node that
has a result is committed to the database, and is not run again.

Try it: ``pytest tests/studio/jobs/test_jobs.py``
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from studio.destination import Destination
from studio.engine.checkpoints.resume import JOB, saved
from studio.engine.events import CancelledEvent, Event, Failed, Finished, Loading, Notice, Progress, Queued
from studio.errors import Cancelled, StoreError, StudioError, UsageError, describe
from studio.jobs.database import Database
from studio.jobs.feed import Feed
from studio.jobs.job import Job, JobArtifact, JobError, JobEvent, JobPosition, JobState, WorkflowWork
from studio.media import Media
from studio.recipe import MediaRef
from studio.spec import JobSpec
from studio.store import Store
from studio.workflow.result_cache import ResultCache

if TYPE_CHECKING:
    from pathlib import Path

    from studio.api import Studio
    from studio.engine import Request
    from studio.workflow import FlowResult, Graph, NodeReport, WorkflowRun


@dataclass
class Outcome:
    """How an attempt ended. `media` are the outputs, each with its name."""

    state: JobState
    media: list[tuple[str, Media]] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    error: JobError | None = None
    notices: tuple[str, ...] = ()


Ended = Callable[[str, Outcome], None]


class Running(Protocol):
    """A running job. `progress` is the latest, or None."""

    progress: JobPosition | None

    def stop(self, *, pause: bool) -> None:
        """Cancel it, or save its state and end it; it ends with `Outcome` within a step."""


def start(studio: Studio, database: Database, job: Job, feed: Feed, ended: Ended) -> Running:
    """Start an attempt; `ended` is called once, from any thread. Raises StudioError if it cannot be started."""
    if isinstance(job.work, JobSpec):
        return RunningRequest(studio, job, feed, ended)
    return RunningWorkflow(studio, database, job, feed, ended)


class RunningRequest:
    """A JobSpec in an engine."""

    def __init__(self, studio: Studio, job: Job, feed: Feed, ended: Ended) -> None:
        assert isinstance(job.work, JobSpec)
        self.progress: JobPosition | None = None
        self._id, self._feed, self._ended = job.id, feed, ended
        self._notices: list[str] = []
        self._ticket = studio.submit(studio.saved_as(studio.request(job.work), name_of(job.id)))
        self._ticket.listen(self._hear)

    def stop(self, *, pause: bool) -> None:
        """See Running."""
        if pause:
            self._ticket.pause()
        else:
            self._ticket.cancel()

    def _hear(self, event: Event) -> None:
        if event.last:
            self._ended(self._id, self._outcome(event))
            return
        if isinstance(event, Queued):
            return
        if isinstance(event, Notice):
            self._notices.append(event.text)
        elif isinstance(event, Progress):
            self.progress = JobPosition(position=event.position, steps=event.steps, eta_s=event.eta_s)
        elif isinstance(event, Loading):
            self.progress = JobPosition(doing=f"loading {event.generator} on {event.device}")
        self._feed.add(event)

    def _outcome(self, event: Event) -> Outcome:
        notices = tuple(self._notices)
        if isinstance(event, Finished):
            return Outcome(JobState.DONE, [(self._ticket.request.spec.generator, event.media)], notices=notices)
        if isinstance(event, Failed):
            return Outcome(JobState.FAILED, error=JobError.of(event.error), notices=notices)
        assert isinstance(event, CancelledEvent)
        return Outcome(JobState.CANCELLED, notices=notices)


class RunningWorkflow:
    """A workflow in a thread of its own."""

    def __init__(self, studio: Studio, database: Database, job: Job, feed: Feed, ended: Ended) -> None:
        assert isinstance(job.work, WorkflowWork)
        self.progress: JobPosition | None = None
        self._studio, self._database, self._job, self._work = studio, database, job, job.work
        self._feed, self._ended = feed, ended
        self._graph = graph_of(studio, job.work)
        self._given = inputs_of(studio.store, self._graph, job.work)
        self._positions: dict[str, NodeReport] = {}
        self._stopped = False
        self._pause = False
        self._run: WorkflowRun | None = None
        self._guard = threading.Lock()
        threading.Thread(target=self._go, name=f"studio-{job.id[:8]}", daemon=True).start()

    def stop(self, *, pause: bool) -> None:
        """See Running."""
        with self._guard:
            self._stopped, self._pause = True, pause
            if self._run is not None:
                self._run.stop(pause=pause)

    def _go(self) -> None:
        try:
            outcome = self._outcome(self._result())
        except Cancelled:
            outcome = Outcome(JobState.CANCELLED)
        except StudioError as error:
            outcome = Outcome(JobState.FAILED, error=JobError.of(error))
        except Exception as error:  # a bug, or a plugin's property that raises
            outcome = Outcome(
                JobState.FAILED, error=JobError.of(StudioError(f"the workflow failed: {describe(error)}"))
            )
        self._ended(self._job.id, outcome)

    def _result(self) -> FlowResult:
        from studio.workflow.run import allowed_paths

        work = self._work
        named = ("client", "priority", "time_limit_s", "ai_label")
        options = {name: getattr(work, name) for name in named}
        with (
            JobResults(self._studio.store, self._database, self._job.id) as results,
            allowed_paths(self._graph, self._given),
        ):
            run = self._studio.workflow_run(
                self._graph, self._given, results, options, self._prepare, seed=work.seed, watch=self._watch
            )
            with self._guard:
                self._run = run
                if self._stopped:
                    run.stop(pause=self._pause)
            return self._studio.relabelled(run.go(), work.ai_label)

    def _prepare(self, request: Request) -> Request:
        """Have a node's state saved under the job's id and what the node makes."""
        what = hashlib.sha256(request.spec.to_json().encode("utf-8", "surrogatepass")).hexdigest()[:24]
        return self._studio.saved_as(request, name_of(self._job.id, what))

    def _watch(self, report: NodeReport) -> None:
        self._positions[report.name] = report
        ended = sum(each.over for each in self._positions.values())
        self.progress = JobPosition(
            position=ended, steps=len(self._graph.nodes), eta_s=report.left_s, doing=report.name
        )
        data = {
            "name": report.name, "state": report.state, "position": report.position, "steps": report.steps,
            "finished": report.finished, "total": report.total, "doing": report.doing,
            "error": None if report.error is None else report.error.message,
        }  # fmt: skip
        self._feed.add(JobEvent(0, "node", data), report.name)

    def _outcome(self, result: FlowResult) -> Outcome:
        media = [pair for name, value in result.outputs.items() for pair in _media(name, value)]
        values = {name: value for name, value in result.outputs.items() if not any(_media(name, value))}
        notices = tuple(dict.fromkeys(text for node in result.nodes.values() for text in node.notices))
        for node in result.failed:
            assert node.error is not None
            error = JobError.of(node.error)
            error = error.model_copy(update={"message": f"the node `{node.name}` failed: {error.message}"})
            return Outcome(JobState.FAILED, media, values, error, notices)
        return Outcome(JobState.DONE, media, values, None, notices)


class JobResults(ResultCache):
    """The result cache of a workflow job: what one of its nodes made is committed in the jobs' database too, where it
    is neither evicted nor lost with the cache.
    """

    def __init__(self, store: Store, database: Database, id: str) -> None:
        super().__init__(store)
        self._artifacts, self._database, self._id = store, database, id

    def find(self, key: str) -> MediaRef | None:
        """The result under this key."""
        with self._database.reading() as tables:
            made = tables.node(self._id, key)
        return made if made is not None and self._artifacts.path(made.sha256) else super().find(key)

    def add(self, key: str, made: MediaRef, *, intermediate: bool) -> None:
        """Commit a result."""
        super().add(key, made, intermediate=intermediate)
        self._database.commit(lambda tables: tables.add_node(self._id, key, made))


def graph_of(studio: Studio, work: WorkflowWork) -> Graph:
    """Compile a workflow job's document. Raises WorkflowError with every problem."""
    from pathlib import Path

    from studio.workflow.check import compile_document
    from studio.workflow.document import parse

    path = Path(work.file) if work.file else Path(os.devnull, "workflow.yaml")  # in a folder that has no files
    document = parse(work.document, path.name)
    return compile_document(document, studio.generators, path, studio.plugins.reports)


def inputs_of(store: Store, graph: Graph, work: WorkflowWork) -> dict[str, Any]:
    """The inputs of a workflow job, with media from the store. Raises InputError, UnknownName, StoreError."""
    graph.Inputs.main_names(work.inputs)
    inputs = graph.Inputs.from_recipe(work.inputs, lambda ref: store.open(ref.sha256))
    return {name: getattr(inputs, name) for name in type(inputs).model_fields if name in inputs.model_fields_set}


def write(job: Job, outcome: Outcome, home: Path) -> tuple[list[JobArtifact], list[str], JobError | None]:
    """Write the outputs where the job asked for: the artifacts, further notices, and the first error. A file that an
    attempt before a crash has written counts as written.
    """
    artifacts, notices, failed = [], list[str](), None
    for name, media in outcome.media:
        path = "" if media.path is None else str(media.path)
        try:
            path = str(_save(job, name, media, home))
        except UsageError as error:  # saved in another data folder, or damaged
            notices.append(f"{error.message}: {error.hint}")
        except StoreError as error:
            failed = failed or JobError.of(error)
        artifacts.append(JobArtifact(sha256=media.sha256, media_type=media.media_type, name=name, path=path))
    return artifacts, notices, failed


def _save(job: Job, name: str, media: Media, home: Path) -> Path:
    work, again = job.work, job.attempts > 1
    if isinstance(work, JobSpec):
        target = Destination.from_json(work.destination, home)
        return target.save_as(media, f"{work.generator}-{work.seed}-{media.sha256[:8]}", again=again)
    wanted = (work.destination or {}).get(name.rpartition("-")[0]) or (work.destination or {}).get(name)
    return Destination.from_json(wanted if isinstance(wanted, dict) else None, home).save_as(media, name, again=again)


def name_of(id: str, part: str = "") -> str:
    """The name under which the states of a job are saved."""
    return f"{JOB}{id}-{part}" if part else f"{JOB}{id}"


def states_of(home: Path, id: str) -> list[Path]:
    """The files of the saved states of a job."""
    return [*saved(home, name_of(id)), *saved(home, name_of(id, "*"))]


def forget_states(home: Path, id: str) -> None:
    """Delete the saved states of a job."""
    for path in states_of(home, id):
        path.unlink(missing_ok=True)


def _media(name: str, value: Any) -> Iterator[tuple[str, Media]]:
    """The media of an output with their names: those of a list are numbered."""
    if isinstance(value, Media):
        yield name, value
    elif isinstance(value, list):
        digits = len(str(len(value)))
        for number, each in enumerate(value, 1):
            yield from _media(f"{name}-{number:0{digits}d}", each)
