"""`studio jobs`: work that is accepted on disk, and done whatever is killed meanwhile."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from studio.cli.lib.making import GeneratorCommand
from studio.cli.lib.options import label_of, request_of, takes_label, takes_request
from studio.cli.lib.output import emit, emit_json, note, report_error, stray_prints_aside, table
from studio.cli.lib.settings import EPILOG, Settings
from studio.cli.lib.signing import takes_signer

if TYPE_CHECKING:
    from pathlib import Path

    from studio.jobs import Job, JobEvent, Jobs
    from studio.jobs.supervisor import Supervisor

COLUMNS = ("id", "state", "what", "client", "priority", "progress", "created")
_KEY = click.Option(
    ["--idempotency-key"], metavar="TEXT", help="Adding the same again with the same key gives the same job."
)


@click.group("jobs", epilog=EPILOG)
def command() -> None:
    """Queue work that outlives the process, and run it.

    `studio jobs add` accepts a job on disk; `studio jobs run` runs what is queued, and continues what a crash or a kill
    has interrupted. Jobs of one client run in order; clients take turns.
    """


class Addable(click.Group):
    """Each generator as a command that adds a job, and `run` for workflows."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The generators by name, after `run`."""
        return ["run", *sorted(ctx.obj.studio().generators)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        """Make the command. Raises UnknownName, which names the nearest."""
        if cmd_name == "run":
            return add_workflow
        return AddCommand(cmd_name, generator=cmd_name, short_help=ctx.obj.generator(cmd_name).summary)


class AddCommand(GeneratorCommand):
    """The command that adds jobs of one generator."""

    def __init__(self, name: str, generator: str, short_help: str = "") -> None:
        super().__init__(name, generator, short_help)
        self.params = [each for each in self.params if each.name not in ("previews", "preview_every")] + [_KEY]

    def invoke(self, ctx: click.Context) -> int:
        """Add the jobs, and print their ids."""
        settings, params = ctx.obj, ctx.params
        given = self.inputs(settings, params)
        count, key = params["count"], params["idempotency_key"]
        place = self.target(settings, params).as_json(settings.studio().home)
        options = {**request_of(params), **label_of(params), "destination": place}
        with _opened(settings) as jobs:
            first = jobs.spec(self.generator, key=key, seed=params["seed"], **options, **given)
            specs = [first.model_copy(update={"seed": first.seed + index}) for index in range(count)]
            keys = [key if key is None or count == 1 else f"{key}/{index}" for index in range(count)]
            _print([jobs.add(spec, key=each) for spec, each in zip(specs, keys, strict=True)], params["as_json"])
        return 0


command.add_command(
    Addable(
        "add",
        help='Add a job: `studio jobs add image "a red apple" -o apple.png`, with the generator\'s own options.',
        subcommand_metavar="NAME ...",
        epilog=EPILOG,
    )
)


@click.command("run", epilog=EPILOG)
@click.argument("file", metavar="FILE|NAME")
@click.option("-p", "given", metavar="NAME=VALUE", multiple=True, help="Workflow input.")
@click.option("-o", "--output", metavar="DIR|FILE", help="Folder for the outputs, or a file for a single one.")
@click.option("--force", is_flag=True, help="Overwrite existing files.")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Random seed, 0 to 2^63 - 1.")
@click.option("--idempotency-key", metavar="TEXT", help="Adding the same again with the same key gives the same job.")
@click.option("--json", "as_json", is_flag=True, help="Print the job as JSON.")
@takes_label
@takes_signer
@takes_request
@click.pass_obj
def add_workflow(
    settings: Settings, file: str, given: tuple[str, ...], output: str | None, force: bool, seed: int,
    idempotency_key: str | None, as_json: bool, request: dict[str, Any], label: dict[str, Any], sign: Path | None,
    key: Path | None,
) -> int:  # fmt: skip
    """Add a job that runs the workflow FILE, or the built-in workflow NAME."""
    from studio.cli.commands.run import targets_of, values_of

    studio = settings.studio()
    graph = studio.workflow(file)
    signing = {"sign": sign, "key": key, "no_label": label["ai_label"] is False}
    targets = targets_of(graph, output, settings, signing, force=force)
    places = {name: target.as_json(studio.home) for name, target in targets.items()} if output else None
    with _opened(settings) as jobs:
        work = jobs.workflow(file, values_of(graph, given), seed=seed, destination=places, **request, **label)
        _print([jobs.add(work, key=idempotency_key)], as_json)
    return 0


@command.command("run", epilog=EPILOG)
@click.option("--json", "as_json", is_flag=True, help="Print each job that has ended as a line of JSON.")
@click.pass_obj
def run(settings: Settings, as_json: bool) -> int:
    """Run the queued jobs until there are none, and print the paths of their outputs.

    If a job ends the process, the others go on; after three times it is quarantined. Ctrl-C saves running jobs, which
    the next `studio jobs run` continues. The exit code is 1 if any job failed.
    """
    return settings.supervised(lambda supervisor: _work(settings, supervisor, as_json))


def _work(settings: Settings, supervisor: Supervisor, as_json: bool) -> int:
    ended: queue.SimpleQueue[Job] = queue.SimpleQueue()  # printed here: a reader may have gone
    failed, over, reported = False, False, ""
    with _opened(settings) as jobs, stray_prints_aside():
        jobs.start(supervisor, ended=ended.put)
        while not over or not ended.empty():
            with suppress(queue.Empty):
                job = ended.get(timeout=0.1)
                failed = failed or job.state in ("failed", "quarantined")
                _print_ended(job, as_json)
            over = over or jobs.drain(0.01)
            if (problem := jobs.problem) is not None and problem.message != reported and not settings.quiet:
                note(f"warning: jobs wait: {(reported := problem.message)}")
    return int(failed)


def _print_ended(job: Job, as_json: bool) -> None:
    if as_json:
        emit(job.to_json())
        return
    for artifact in job.artifacts:
        emit(artifact.path)
    if job.error is not None:
        report_error(f"the job `{job.id}` {_verb(job)}: {job.error.message}", job.error.hint)


@command.command("list", epilog=EPILOG)
@click.option("--state", "state", metavar="STATE", help="Only jobs in this state, such as queued or failed.")
@click.option("--client", metavar="NAME", help="Only jobs of this client.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, metavar="N", help="At most N jobs.")
@click.option("--after", metavar="ID", help="Only jobs older than this one: the next page.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
@click.pass_obj
def list_(
    settings: Settings, state: str | None, client: str | None, limit: int, after: str | None, as_json: bool
) -> int:
    """List the jobs, newest first."""
    from studio.errors import UnknownName
    from studio.jobs import JobState

    if state is not None and state not in [*JobState]:
        raise UnknownName("state", state, [*JobState])
    with _opened(settings) as jobs:
        found = jobs.list(None if state is None else JobState(state), client, limit, after)
    if as_json:
        emit_json([job.model_dump(mode="json") for job in found])
    elif found:
        table(COLUMNS, [_row(job) for job in found])
    else:
        note("note: no jobs")
    return 0


@command.command("show", epilog=EPILOG)
@click.argument("id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print the job as JSON.")
@click.pass_obj
def show(settings: Settings, id: str, as_json: bool) -> int:
    """Show a job: its state, its outputs, and why it failed."""
    with _opened(settings) as jobs:
        job = jobs.get(id)
    if as_json:
        emit_json(job.model_dump(mode="json"))
        return 0
    rows = dict(zip(COLUMNS, _row(job), strict=True)) | {"attempts": str(job.attempts)}
    if job.error is not None:
        rows["error"] = job.error.message + (f"; {job.error.hint}" if job.error.hint else "")
    rows |= {f"output {each.name}": each.path for each in job.artifacts}
    rows |= {f"output {name}": str(value) for name, value in job.values.items()}
    rows |= {f"notice {number}": text for number, text in enumerate(job.notices, 1)}
    table(("", ""), list(rows.items()))
    return 0


@command.command("watch", epilog=EPILOG)
@click.argument("id", metavar="ID")
@click.option("--after", type=click.IntRange(0), default=0, metavar="N", help="Only events with a higher number.")
@click.option("--json", "as_json", is_flag=True, help="Print each event as a line of JSON.")
@click.pass_obj
def watch(settings: Settings, id: str, after: int, as_json: bool) -> int:
    """Print what happens to a job until it has ended; the exit code is 1 if it is not done then."""
    with _opened(settings) as jobs:
        for event in jobs.events(id, after):
            if as_json:
                emit(event.to_json())
            elif text := _text(event):
                emit(text)
        return int(jobs.get(id).state != "done")


def _text(event: JobEvent) -> str:
    data = event.data
    if event.type == "state":
        places = "".join(f" {each['path']}" for each in data["artifacts"])
        return f"{data['state']}{places}{': ' + data['error']['message'] if data['error'] else ''}"
    if event.type == "progress":
        return f"step {data['position']} of {data['steps']}"
    return str(data["text"]) if event.type == "notice" else ""


def _change(name: str, about: str) -> None:
    """Declare a command that does the method of this name to each of some jobs."""

    @command.command(name, help=about, epilog=EPILOG)
    @click.argument("ids", metavar="ID...", nargs=-1, required=True)
    @click.option("--json", "as_json", is_flag=True, help="Print the jobs as a JSON list.")
    @click.pass_obj
    def change(settings: Settings, ids: tuple[str, ...], as_json: bool) -> int:
        with _opened(settings) as jobs:
            _print([getattr(jobs, name)(id) for id in ids], as_json, show_state=True)
        return 0


_change("cancel", "Cancel jobs. A running one ends within a step.")
_change("pause", "Pause jobs: queued ones do not start, the state of running ones is saved to disk.")
_change("resume", "Queue paused jobs again; they continue from their saved state.")
_change("retry", "Queue failed, cancelled or quarantined jobs again.")


@command.command("move", epilog=EPILOG)
@click.argument("id", metavar="ID")
@click.option("--first", is_flag=True, help="To the front of the queue.")
@click.option("--before", metavar="ID", help="Before this job.")
@click.pass_obj
def move(settings: Settings, id: str, first: bool, before: str | None) -> int:
    """Move a queued job to the front of the queue, or before another job."""
    with _opened(settings) as jobs:
        jobs.move(id, first=first, before=before)
    return 0


@command.command("prune", epilog=EPILOG)
@click.option(
    "--older-than", type=click.FloatRange(0), default=0.0, metavar="DAYS", help="Only jobs that ended before."
)
@click.option("--keep", type=click.IntRange(0), default=0, metavar="N", help="Keep the N latest.")
@click.pass_obj
def prune(settings: Settings, older_than: float, keep: int) -> int:
    """Forget jobs that have ended. Their outputs stay in the store."""
    with _opened(settings) as jobs:
        count = jobs.prune(older_than * 86_400, keep)
    note(f"{count} {'job' if count == 1 else 'jobs'} removed")
    return 0


@contextmanager
def _opened(settings: Settings) -> Iterator[Jobs]:
    from studio.jobs import Jobs

    settings.local = True  # the engines of this process run the jobs, not those of a server
    with Jobs(settings.studio()) as jobs:
        yield jobs


def _print(found: list[Job], as_json: bool, *, show_state: bool = False) -> None:
    if as_json:
        emit_json([job.model_dump(mode="json") for job in found])
    else:
        for job in found:
            emit(f"{job.id} {job.asked or job.state}" if show_state else job.id)


def _row(job: Job) -> tuple[str, ...]:
    at = job.progress
    created = datetime.fromtimestamp(job.created).isoformat(" ", "seconds")
    progress = "-" if at is None else f"{at.position}/{at.steps}" if at.steps else at.doing
    return (job.id, job.state.value, job.name, job.client or "-", job.priority, progress, created)


def _verb(job: Job) -> str:
    return "was quarantined" if job.state == "quarantined" else "failed"
