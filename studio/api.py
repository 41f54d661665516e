"""Studio: the Python API, which the command line uses too.

It combines the plugins, the store and one engine per device. Everything is created on first use, so constructing it
costs nothing. Use it as a context manager, or call `close`; at exit it closes itself.

Try it::

    with studio.Studio() as s:
        picture = s.image("a red apple", seed=7)
        picture.save("apple.png")
"""

from __future__ import annotations

import collections.abc
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from studio import configuration
from studio.attention.current import DispatchSettings
from studio.caching import cached_property
from studio.engine import Event, Request, Ticket
from studio.engine.checkpoints import resume
from studio.engine.checkpoints.resume import Resumed, Unfinished
from studio.engine.observe import status
from studio.engine.router import RequestRouter
from studio.engine.ticket import MAX_UNFINISHED, RequestLimit, follow, wait
from studio.engines import Engines
from studio.errors import InputError, StudioError, UnknownName, UsageError
from studio.files import expanded
from studio.generator import Generator, Trainer
from studio.home import default_home
from studio.labelling import Labeller
from studio.media import Media
from studio.methods import Methods
from studio.plugins import Plugins
from studio.recipe import MediaRef
from studio.remake import Remake
from studio.requests import Requests
from studio.spec import DTYPES, MAX_SEED, JobSpec, Priority
from studio.store import Artifact, Store, replay
from studio.store.replay import Ancestor, ReplayReport
from studio.units import parse_bytes

if TYPE_CHECKING:
    from studio.doctor import DoctorReport
    from studio.workflow import FlowResult, Graph, NodeReport, Workflow, WorkflowRun
    from studio.workflow.result_cache import ResultCache

MAX_AT_ONCE = 1000


class Studio(Methods):
    """Generators, engines and the store.

    Args:
        home: the data folder (default: ``$STUDIO_HOME``, or the user's data folder).
        device: ``cpu``, ``cuda``, ``cuda:N``, or several of these separated by commas (default: every CUDA device that
            torch can use, else the CPU).
        dtype: ``float32``, ``bfloat16`` or ``float16``, instead of the generators' choice.
        plugins: files or folders to load in addition to the installed plugins.
        memory: each device's budget for models, states and steps, in bytes or as ``2GiB`` (default: 90% of the free
            memory).
        invariant: do not batch requests, so that a request's bytes do not depend on other requests.
        ai_label: whether outputs are labelled as made by AI (default: the data folder's setting, else true).
        trace: a file for a Chrome trace of all work.
        max_requests: how many requests may be unfinished at once; more are rejected with Busy.
        use_server: run requests in the process of `studio serve`, if one serves this data folder.

    Raises StoreError if the trace cannot be written. A plugin path that does not exist, and a device that is not
    available, raise UsageError when they are first needed.
    """

    def __init__(
        self,
        *,
        home: Path | str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        plugins: Sequence[Path | str] = (),
        memory: int | str | None = None,
        invariant: bool = False,
        ai_label: bool | None = None,
        trace: Path | str | None = None,
        max_requests: int = MAX_UNFINISHED,
        use_server: bool = False,
    ) -> None:
        if dtype is not None and dtype not in DTYPES:
            raise UnknownName("dtype", dtype, DTYPES)
        if not isinstance(max_requests, int) or isinstance(max_requests, bool) or max_requests < 1:
            message = f"`max_requests` is {max_requests!r}, but must be a whole number from 1"
            raise InputError("max_requests", message)
        self.home = (default_home() if home is None else expanded(home)).absolute()  # a plugin may change the folder
        self.store = Store(self.home)
        self._device, self._dtype, self._paths = device, dtype, tuple(plugins)
        self._invariant, self._use_server = invariant, use_server
        self._labelling = Labeller(self.home, self.store, ai_label)
        self._lock = threading.Lock()
        self._engines = Engines(
            self.home, self.store, chosen=device, dtype=dtype, trace=None if trace is None else Path(trace),
            memory=parse_bytes(str(memory)) if memory is not None else None, limit=RequestLimit(max_requests),
            attention=lambda: DispatchSettings(self.plugins.attention.values(), self.home),
        )  # fmt: skip
        self._router: RequestRouter | None = None
        self._closed = False

    @cached_property
    def plugins(self) -> Plugins:
        """The plugins, discovered on first use; `plugins.reports` lists broken ones."""
        named = configuration.plugins(self.home)
        paths = {path.absolute().resolve(): path for path in map(Path, (*named.paths, *self._paths))}
        reserved = [*object.__dir__(self)]
        found = Plugins.discover(list(paths.values()), user_folder=named.folder, reserved=reserved)
        found.reports += named.refused
        return found

    @property
    def generators(self) -> Mapping[str, Generator]:
        """Every generator by name."""
        return self.plugins.generators

    @property
    def trainers(self) -> Mapping[str, Trainer]:
        """Every training recipe by name."""
        return self.plugins.trainers

    @property
    def router(self) -> RequestRouter:
        """One engine per device, or the server's, on first use. Raises UsageError for an unavailable device."""
        with self._lock:
            if self._closed:
                raise UsageError("this Studio is closed", hint="create a new one")
            if self._router is None and self._use_server:
                from studio import remote

                self._router = remote.connect(self.home, self.store, self._engines.router)
            self._router = self._router or self._engines.router()
            return self._router

    def generator(self, name: str) -> Generator:
        """Return a generator by name. Raises UnknownName, which names the nearest."""
        try:
            return self.generators[name]
        except KeyError:
            raise UnknownName("generator", name, self.generators) from None

    def submit(self, what: str | JobSpec | Request, /, **values: Any) -> Ticket:
        """Queue a request and return its ticket at once.

        `what` is a generator's name, a complete JobSpec, or the result of `request`. `values` are the generator's
        inputs, and these options:

        - `seed`: from 0 to 2**63 - 1 (default: a random 32-bit number, which the recipe records).
        - `dtype`: instead of the generator's choice.
        - `priority`: ``interactive`` or ``background``.
        - `client`: the user for whom it runs; clients share a device evenly.
        - `time_limit_s`: the timeout of each call of the generator.
        - `preview_every`: a Preview event every N steps (0: none).
        - `stream`: report generated text in Delta events.
        - `invariant`: do not batch with other requests.
        - `label`: any text of yours.
        - `stored`: false to store nothing.
        - `destination`: the output path, so that `studio resume` can write the output after a crash.
        - `ai_label`: false to write no label that the output is made by AI.

        Raises UnknownName, InputError, ModelError or MediaError before anything runs, and Busy if too many requests
        are unfinished.
        """
        made = what if isinstance(what, Request) else self.request(what, **values)
        return self.router.submit_many([made], self.router.devices[0] if made.resume else None)[0]

    def request(self, what: str | JobSpec, /, **values: Any) -> Request:
        """Validate a request as `submit` does, without submitting it; its `spec` is the whole JobSpec."""
        if isinstance(what, str):
            return self.requests.of_values(what, values)
        if values:
            raise UsageError(f"`{next(iter(values))}` is given in addition to a JobSpec", hint="set it in the JobSpec")
        return self.requests.of_spec(what)

    def saved_as(self, request: Request, name: str) -> Request:
        """The request with its state saved under `name`, continued from that state if a crash or a pause left one."""
        return resume.named(request, name, self.requests, self._engines.folders[0], self.router.devices[0])

    def submit_many(self, what: str | JobSpec, n: int, /, **values: Any) -> list[Ticket]:
        """Queue n equal requests (1 to 1000) with the seeds seed, seed + 1, …, which can be batched. Raises like
        `submit`.
        """
        if not 1 <= n <= MAX_AT_ONCE:
            raise InputError("n", f"`n` is {n}, but must be a whole number from 1 to {MAX_AT_ONCE}")
        first = self.request(what, **values)
        seed = first.spec.seed
        if seed > MAX_SEED - n + 1:
            raise InputError("seed", f"`seed` is {seed}, but must be at most {MAX_SEED - n + 1} for {n} in a row")
        return self.router.submit_many([first.with_seed(seed + i, str(i)) for i in range(n)])

    def stream(self, what: str | JobSpec, /, **values: Any) -> collections.abc.Generator[Event, None, None]:
        """Run a request and yield its events; leaving the iterator early cancels it. Raises like `submit`, at once.

        Generated text is streamed in Delta events. A failure is raised after its Failed event.
        """
        if isinstance(what, str):
            return follow(self.submit(what, **{"stream": True, **values}))
        return follow(self.submit(what.model_copy(update={"stream": True}), **values))

    def generate(self, what: str | JobSpec, /, **values: Any) -> Media:
        """Run a request, store its output and return it with `recipe` and `path`. Ctrl-C cancels it."""
        return wait([self.submit(what, **values)])[0]

    def workflow(self, what: Path | str | Workflow) -> Graph:
        """Compile a workflow from a file or from Python. Raises WorkflowError with every problem."""
        from studio.workflow import compile_file

        if isinstance(what, Path | str):
            return compile_file(what, self.generators, self.plugins.reports)
        return what.compile(self.generators, self.plugins.reports)

    def run(
        self,
        what: Path | str | Workflow | Graph,
        inputs: Mapping[str, Any] | None = None,
        /,
        *,
        seed: int = 0,
        fresh: bool = False,
        client: str = "",
        priority: Priority = "interactive",
        time_limit_s: float | None = None,
        ai_label: bool | None = None,
        watch: Callable[[NodeReport], None] = lambda _: None,
        **more: Any,
    ) -> FlowResult:
        """Run a workflow with these inputs and return its outputs. Nodes that did not change since the last run use
        cached results.

        Inputs may be given as keywords too, except those with the name of an option. The seeds of nodes without a
        seed are derived from `seed`; `fresh` ignores cached results. `client`, `priority`, `time_limit_s` and
        `ai_label` apply to every node's request, as in `submit`. `watch` is called with every change of a node. Failed
        nodes are listed in the result; nodes that do not depend on them run. A workflow file can name only pulled
        models; a model's path is opened only if it is one of `inputs`.
        Raises WorkflowError, UnknownName, InputError or MediaError before anything runs.
        """
        from studio.workflow import Graph
        from studio.workflow.result_cache import ResultCache
        from studio.workflow.run import allowed_paths

        graph = what if isinstance(what, Graph) else self.workflow(what)
        given = {**(inputs or {}), **more}
        options = {"client": client, "priority": priority, "time_limit_s": time_limit_s, "ai_label": ai_label}
        with ResultCache(self.store) as cache, allowed_paths(graph, given):
            made = self.workflow_run(graph, given, cache, options, seed=seed, fresh=fresh, watch=watch).go()
            return self.relabelled(made, ai_label)

    def workflow_run(
        self,
        graph: Graph,
        given: Mapping[str, Any],
        cache: ResultCache,
        options: Mapping[str, Any],
        prepare: Callable[[Request], Request] = lambda request: request,
        **more: Any,
    ) -> WorkflowRun:
        """A run that has not begun, for `run` and for jobs. `options` are fields of each node's JobSpec, `prepare` may
        change each request, and `more` goes to the WorkflowRun. Raises as `run`.
        """
        from studio.workflow import WorkflowRun
        from studio.workflow.local_executor import LocalExecutor

        settings = {"device": self._device, "dtype": self._dtype, "invariant": self._invariant}
        executor = LocalExecutor(self.requests, self.store, lambda: self.router, settings, options, prepare)
        return WorkflowRun(graph, graph.Inputs.parse(given), executor, self.store, cache, **more)

    def relabelled(self, made: FlowResult, ai_label: bool | None) -> FlowResult:
        """A workflow's result with the AI labels that are wanted: cached outputs may have been stored with others."""
        return replace(made, outputs={name: self._relabelled(each, ai_label) for name, each in made.outputs.items()})

    def load(self, what: Path | str) -> Media:
        """Read a media file, or an artifact by its id (6 characters or more), with its recipe if it has one."""
        return replay.load(what, self.store)

    def ancestry(self, what: Path | str) -> Ancestor:
        """The media from which a media file or an artifact was generated, recursively, as far as the store knows."""
        media = self.load(what)
        return replay.ancestry(media.sha256, media.recipe, self.store)

    def show(self, what: Path | str) -> Artifact:
        """The hash, path, type, recipe (or None) and AI label (or None) of a media file or an artifact."""
        media = self.load(what)
        return Artifact(media.sha256, media.path or Path(what), media.media_type, media.recipe, media.label)

    def replay(
        self,
        what: Path | str,
        *,
        elsewhere: bool = False,
        client: str = "",
        priority: Priority = "interactive",
        time_limit_s: float | None = None,
        ai_label: bool | None = None,
    ) -> ReplayReport:
        """Generate a file's or an artifact's media again from its recipe, and compare.

        A recipe that was not recorded in this data folder runs only with `elsewhere`; it may then name models only by
        hash or as pulled, and is limited to `studio.store.replay.MOST`. Otherwise UsageError, ModelError, InputError
        or TimedOut is raised.

        Media from which it was generated are generated again first, if the store has their recipes. It runs in the
        recorded dtype and, unless this Studio has a `device`, on the recorded device if that is available.
        `client`, `priority`, `time_limit_s` and `ai_label` are as in `submit`.
        Raises StoreError if there is no recipe, MediaError if it cannot be read, and what `submit` raises.
        """
        options = {"client": client, "priority": priority, "time_limit_s": time_limit_s, "ai_label": ai_label}
        remake = Remake(self.store, self.requests, self.router, self._device, self._dtype, options)
        return remake.replay(self.load(what), what, elsewhere=elsewhere)

    def unfinished(self) -> list[Unfinished]:
        """List the requests that a crash has interrupted; those of running processes are not included."""
        return resume.unfinished(self.home)

    def resume(self, *ids: str) -> Resumed:
        """Resume the unfinished requests with these ids (none: all) from their last saved state; return their tickets.

        A request that cannot be resumed, because it is damaged or its generator or weights have changed, is refused
        with the reason; the others run. Raises UnknownName for an unknown id.
        """
        chosen = resume.choose(self.unfinished(), ids)
        first = self.router.devices[0]  # its folder takes over the checkpoints
        requests: dict[str, Request] = {}
        refused: dict[str, StudioError] = {}
        for found in chosen:
            try:
                requests[found.id] = resume.request(found, self.requests, self._engines.folders[0], first)
            except StudioError as error:
                refused[found.id] = error
        tickets = self.router.submit_many(list(requests.values()), first)
        return Resumed(dict(zip(requests, tickets, strict=True)), refused)

    def drop(self, *ids: str) -> None:
        """Discard unfinished requests: remove their saved states. Raises UnknownName."""
        for found in resume.choose(self.unfinished(), ids) if ids else ():
            self._engines.folders[0].claim(found.path).unlink()

    def metrics(self) -> str:
        """Metrics of the engines in Prometheus text format (0.0.4)."""
        return self._engines.metrics.text()

    def running(self) -> list[dict[str, Any]]:
        """The status of the engines of all running processes, as `studio top --json` prints it."""
        return status.read(self.home)

    def doctor(self) -> DoctorReport:
        """Report versions, devices, memory, threads, attention backends, the data folder and plugins."""
        from studio.doctor import examine

        return examine(self._device, self.home, self.plugins)

    def close(self) -> None:
        """Cancel all requests, wait for the step in flight, and free the models. May be called twice."""
        with self._lock:
            self._closed = True
            router, self._router = self._router, None
        if router is not None:
            router.close()
        self.abandon()

    def abandon(self) -> None:
        """Close the status, the trace and the run folders without waiting: for a process that exits during a step."""
        self._engines.abandon()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @cached_property
    def requests(self) -> Requests:
        """Builds requests from values and from JobSpecs."""
        fetch = partial(_fetch, self.store)
        return Requests(lambda: self.plugins, fetch, self.home, self._invariant, self._labelling)

    def _relabelled(self, value: Any, wanted: bool | None) -> Any:
        if isinstance(value, list):
            return [self._relabelled(each, wanted) for each in value]
        if not isinstance(value, Media):
            return value
        generator = self.generators.get(value.recipe.spec.generator) if value.recipe else None
        made = self._labelling.again(value, generator, wanted)
        if made is not value and value.recipe is not None:
            self.store.put(made)
        return made


def _fetch(store: Store, ref: MediaRef) -> Media:
    return store.open(ref.sha256)
