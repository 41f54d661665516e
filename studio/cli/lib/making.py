"""The command of a generator: `studio image` and `studio generate NAME` differ only in the generator's name.

Its options are generated from the generator's Inputs when they are needed, so that listing commands loads no plugin.
"""

from __future__ import annotations

import inspect
import queue
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from studio.cli.lib.options import label_of, label_option, request_of, request_options
from studio.cli.lib.output import emit, emit_json, note, report_failure, stray_prints_aside
from studio.cli.lib.settings import EPILOG, Settings
from studio.cli.lib.signing import sign_options, signed

if TYPE_CHECKING:
    from studio.destination import Destination
    from studio.engine import Event, Ticket
    from studio.errors import StudioError
    from studio.inputs import Flag
    from studio.media import Media

MOST = 1000  # requests that one command makes


def _host_options() -> list[click.Parameter]:
    """The host's options, which every generator has."""
    return [
        click.Option(["-n", "count"], type=click.IntRange(1, MOST), default=1, metavar="N",
                     help="Number of outputs, with consecutive seeds."),
        click.Option(["--seed"], type=int, metavar="N",
                     help="Random seed, 0 to 2^63 - 1. Equal seeds give equal outputs, up to rounding when batched"
                     " with other requests (see --invariant).  [default: random]"),
        click.Option(["-o", "--output"], metavar="FILE|DIR",
                     help="Output file, or a folder for files named by generator, seed and id.  [default: the store]"),
        click.Option(["--force"], is_flag=True, help="Overwrite existing files."),
        click.Option(["--previews"], metavar="DIR", help="Folder for previews of intermediate steps."),
        click.Option(["--preview-every"], type=click.IntRange(1), default=5, metavar="STEPS", show_default=True,
                     help="Steps between two previews, with --previews."),
        *request_options(),
        click.Option(["--json", "as_json"], is_flag=True, help="Print a JSON list instead of paths."),
    ]  # fmt: skip


class GeneratorCommand(click.Command):
    """The command that runs one generator."""

    def __init__(self, name: str, generator: str, short_help: str = "") -> None:
        super().__init__(name, short_help=short_help, epilog=EPILOG, params=_host_options())
        self.generator = generator
        self._made: list[click.Parameter] | None = None

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The generator's inputs, then the host's options."""
        if self._made is None:
            from studio.cli.lib.flags import parameters

            own = super().get_params(ctx)
            top = ctx.find_root().command.params
            taken = {name for parameter in [*own, *top] for name in parameter.opts}
            if ctx.obj.generator(self.generator).output.has_label:
                own[-1:-1] = [label_option(), *sign_options()]
            self._made = [*parameters(_flags(ctx, self.generator), taken), *own]
        return self._made

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Use the generator's docstring as the help."""
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(inspect.getdoc(ctx.obj.generator(self.generator)) or "")

    def invoke(self, ctx: click.Context) -> int:
        """Run the requests; return 0, or 1 if some of several failed."""
        return _run(self, ctx.obj, ctx.params)

    def inputs(self, settings: Settings, params: dict[str, Any], generator: str | None = None) -> dict[str, Any]:
        """The given inputs, validated; for another generator if one is named. Raises InputError, MediaError."""
        from studio.cli.lib.flags import values

        kind = settings.generator(generator or self.generator).Inputs
        flags = [flag for flag in kind.flags() if f"input_{flag.name}" in params]
        inputs = kind.parse(values(flags, params))
        return {flag.name: getattr(inputs, flag.name) for flag in flags if flag.name in inputs.model_fields_set}

    def target(self, settings: Settings, params: dict[str, Any]) -> Destination:
        """Where the outputs go. Raises UsageError or StoreError for what can be refused before anything runs."""
        from studio.cli.lib.destination import choose

        output, count, force = settings.generator(self.generator).output, params["count"], params["force"]
        target = choose(params["output"], count, output.suffix, force=force, others=output.others)
        return signed(target, settings, params, output.suffix) if output.has_label else target

    def submit(
        self,
        settings: Settings,
        params: dict[str, Any],
        given: dict[str, Any],
        preview_every: int = 0,
        generator: str | None = None,
        target: Destination | None = None,
        *,
        stream: bool = False,
    ) -> list[Ticket]:
        """Submit the requests of the parameters and the `given` inputs, to another generator if one is named. `target`
        is saved with them, so that they can be resumed after a kill. With `stream`, text is reported as it is
        generated. Raises like `Studio.submit_many`.
        """
        name = generator or self.generator
        host = settings.studio()
        return host.submit_many(
            name, params["count"], seed=params["seed"], preview_every=preview_every, stream=stream,
            destination=target.as_json(host.home) if target else None, **request_of(params),
            **label_of(params), **given
        )  # fmt: skip


def _flags(ctx: click.Context, generator: str) -> list[Flag]:
    settings: Settings = ctx.obj
    return settings.generator(generator).Inputs.flags()


def _run(command: GeneratorCommand, settings: Settings, params: dict[str, Any]) -> int:
    from studio.cli.lib.destination import choose
    from studio.cli.lib.progress import Display

    given = command.inputs(settings, params)  # what can be refused is, before folders are made
    count, force = params["count"], params["force"]
    target = command.target(settings, params)
    previews = choose(f"{params['previews']}/", count, ".png", force=force) if params["previews"] else None
    tickets = command.submit(settings, params, given, params["preview_every"] if previews else 0, target=target)
    results = Results(tickets, target, previews)
    seeds = [ticket.request.spec.seed for ticket in tickets]
    with Display(seeds, quiet=settings.quiet) as display, stray_prints_aside():
        for index, event in follow(tickets):
            display.show(index, event)
            results.take(index, event)
            if not (params["as_json"] or display.drawn):
                results.print_ready()
    if params["as_json"]:
        emit_json(results.as_json())
    else:
        results.print_ready()
    return results.report(debug=settings.debug)


def follow(tickets: Sequence[Ticket]) -> Iterator[tuple[int, Event]]:
    """Yield the events of all tickets as they arrive, each with its ticket's index, until every ticket is done."""
    news: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()
    for index, ticket in enumerate(tickets):
        ticket.listen(lambda event, index=index: news.put((index, event)))  # type: ignore[misc]
    left = len(tickets)
    while left:
        index, event = news.get()
        left -= event.last
        yield index, event


class Results:
    """Saves each output as soon as it is finished, prints paths in the order of the seeds, and collects failures."""

    def __init__(
        self,
        tickets: Sequence[Ticket],
        target: Destination,
        previews: Destination | None,
        targets: Mapping[int, Destination] | None = None,
    ) -> None:
        """`targets` has, by index, the targets of requests that do not go to `target`."""
        self.requests = [ticket.request for ticket in tickets]
        self.previews = previews
        self._target, self._targets = target, targets or {}
        self.made: dict[int, tuple[Path, Media]] = {}
        self.failed: dict[int, StudioError] = {}
        self._printed = 0

    def take(self, index: int, event: Event) -> None:
        """Handle an event of the request at `index`."""
        from studio.engine import CancelledEvent, Failed, Finished, Preview
        from studio.errors import Cancelled, NotStored

        request = self.requests[index]
        name = request.spec.generator
        if isinstance(event, Preview) and self.previews:
            self._preview(event.media, f"{name}-step{event.position:04d}", request.spec.seed)
        elif isinstance(event, Finished):
            self._save(index, event.media)
        elif isinstance(event, Failed) and isinstance(event.error, NotStored) and self._to(index).target is not None:
            self._save(index, event.error.media)
            if index in self.made:
                note(f"warning: {event.error.message}; only `{self.made[index][0]}` is written")
        elif isinstance(event, Failed):
            self.failed[index] = event.error
        elif isinstance(event, CancelledEvent):
            self.failed[index] = Cancelled("the request was cancelled")

    def _to(self, index: int) -> Destination:
        return self._targets.get(index, self._target)

    def take_unstored(self) -> None:
        """Count outputs as finished that the data folder could not store: the caller writes them elsewhere."""
        from studio.errors import NotStored

        for index, error in list(self.failed.items()):
            if isinstance(error, NotStored):
                del self.failed[index]
                self.made[index] = (Path(), error.media)

    def _save(self, index: int, media: Media) -> None:
        """Write the output of one request. If it cannot be written, that request fails; the others continue."""
        from studio.errors import StoreError

        request = self.requests[index]
        try:
            self.made[index] = (self._to(index).save(media, request.spec.generator, request.spec.seed), media)
        except StoreError as error:
            self.failed[index] = error

    def _preview(self, media: Media, name: str, seed: int) -> None:
        """Write a preview; if one cannot be written, no more are written."""
        from studio.errors import StoreError

        assert self.previews is not None
        try:
            self.previews.save(media, name, seed)
        except StoreError as error:
            note(f"warning: no more previews: {error.message}")
            self.previews = None

    def print_ready(self) -> None:
        """Print, once each, the paths of finished requests whose predecessors have finished."""
        while self._printed in self.made or self._printed in self.failed:
            if self._printed in self.made:
                emit(str(self.made[self._printed][0]))
            self._printed += 1

    def as_json(self) -> list[dict[str, Any]]:
        """The results for programs, in the order of the seeds."""
        return [
            {"seed": request.spec.seed, **(self._made_json(i) if i in self.made else {"error": self.failed[i].message})}
            for i, request in enumerate(self.requests)
        ]

    def _made_json(self, index: int) -> dict[str, Any]:
        path, media = self.made[index]
        recipe = media.recipe
        return {
            "path": str(path),
            "stored": None if media.path is None else str(media.path),
            "sha256": media.sha256,
            "media_type": media.media_type,
            "seconds": recipe.seconds if recipe else None,
            "notices": list(recipe.notices) if recipe else [],
        }

    def report(self, *, debug: bool) -> int:
        """Report failures, each reason once, and return the exit code. The failure of a single request is raised."""
        if len(self.requests) == 1 and self.failed:
            raise self.failed[0]
        alike: dict[str, list[StudioError]] = {}
        for error in self.failed.values():
            alike.setdefault(error.message, []).append(error)
        for errors in alike.values():
            report_failure(errors[0], f"{len(errors)} of {len(self.requests)} failed: ", debug=debug)
        return 1 if self.failed else 0
