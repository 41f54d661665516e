"""Studio: the object that Python users, the command line and the server share.

It joins plugins, store and one engine for each device, and knows nothing of terminals or HTTP. Everything is made when
first used, so that constructing it costs nothing. Use it as a context manager, or call `close`; at exit it closes by
itself.

Try it::

    with studio.Studio() as s:
        picture = s.image("a red apple", seed=7)
        picture.save("apple.png")
"""

from __future__ import annotations

import dataclasses
import itertools
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from studio import configuration, devices, models, replay, resume, torch_setup
from studio.attention.serving import Serving
from studio.caching import cached_property
from studio.engine import Engine, Event, Failed, Request, Ticket, status
from studio.engine.folder import EngineFolder
from studio.engine.keeper import Keeper
from studio.engine.ledger import parse_bytes
from studio.engine.measured import MEASURED, Measured
from studio.engine.metrics import Metrics
from studio.engine.provenance import libraries
from studio.engine.router import Router
from studio.engine.status import Status
from studio.engine.trace import Trace
from studio.errors import InputError, NotStored, StudioError, TimedOut, UnknownName, UsageError
from studio.files import expanded
from studio.generator import Generator, Trainer
from studio.home import default_home
from studio.inputs import Inputs
from studio.media import Media
from studio.methods import Methods
from studio.plugins import Plugins, missing
from studio.recipe import MediaRef, Recipe
from studio.replay import Ancestor, ReplayReport
from studio.resume import Resumed, Unfinished
from studio.serving import serve
from studio.store import Artifact, Store

if TYPE_CHECKING:
    from pydantic import JsonValue

    from studio.doctor import DoctorReport
    from studio.workflow import FlowResult, Graph, NodeReport, Workflow

MAX_SEED = (1 << 63) - 1
MAX_AT_ONCE = 1000
PRIORITIES = ("interactive", "background")
DTYPES = ("float32", "bfloat16", "float16")


class Studio(Methods):
    """Generators, engines and store in one.

    `home` is the data folder (default: ``$STUDIO_HOME``, or the user's data folder), `device` is ``cpu``, ``cuda``,
    ``cuda:N`` or several of these parted by commas (default: every CUDA device that torch can use, else the CPU).
    `dtype` (``float32``, ``bfloat16``, ``float16``) overrides what generators choose, `plugins` are files or folders to
    load besides the installed plugins. Raises UsageError for a plugin path that does not exist, when plugins are first
    needed, and for a device that is not here. `memory` is each device's budget for models, states and steps, in bytes
    or as ``2GiB`` (default: what is free, less a tenth). With `invariant` each request steps by itself, so that its
    bytes depend on nothing that runs beside it. `trace` names a file for a Chrome trace of all work; StoreError if it
    cannot be written.
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
        trace: Path | str | None = None,
    ) -> None:
        if dtype is not None and dtype not in DTYPES:
            raise UnknownName("dtype", dtype, DTYPES)
        self.home = (default_home() if home is None else expanded(home)).absolute()  # a plugin may change the folder
        self.store = Store(self.home)
        self._device, self._dtype, self._paths = device, dtype, tuple(plugins)
        self._memory = parse_bytes(str(memory)) if memory is not None else None
        self._invariant = invariant
        self._lock = threading.Lock()
        self._folders = [EngineFolder(self.home)]  # of the engines; checkpoints are taken up by the first
        self._trace = None if trace is None else Trace(Path(trace))
        self._metrics = Metrics()
        self._statuses: list[Status] = []
        self._router: Router | None = None
        self._closed = False

    @cached_property
    def plugins(self) -> Plugins:
        """The plugins, found when first asked for; `plugins.reports` tells of those that are broken."""
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
    def router(self) -> Router:
        """One engine for each device, made when first needed. Raises UsageError for a device that is not here."""
        with self._lock:
            if self._closed:
                raise UsageError("this Studio is closed", hint="make a new one")
            if self._router is None:
                numbers = itertools.count(1)
                chosen = devices.choose_many(self._device)
                notices = () if self._device else devices.passed_over()
                self._router = Router([self._make(each, numbers, 0.5 / len(chosen), notices) for each in chosen])
            return self._router

    @cached_property
    def _attention(self) -> Serving:
        return Serving(self.plugins.attention.values(), self.home)

    def _make(self, device: str, numbers: Iterator[int], host_share: float, notices: Sequence[str]) -> Engine:
        """An engine, and those who watch it."""
        if self._statuses:
            self._folders.append(EngineFolder(self.home))
        folder = self._folders[-1]
        self._statuses.append(Status(folder, device))
        seeing = (self._metrics, self._statuses[-1], *([self._trace.lane(device)] if self._trace else ()))
        keeper = Keeper(folder, self.store, seeing)
        return Engine(
            device,
            self._dtype,
            store=self.store,
            memory=self._memory,
            measured=Measured(self.home / MEASURED, libraries()),
            watchers=(*seeing, keeper),
            keeper=keeper,
            numbers=numbers,
            attention=self._attention,
            host_share=host_share,
            notices=notices,
        )

    def generator(self, name: str) -> Generator:
        """Return a generator by name. Raises UnknownName, which names the nearest."""
        try:
            return self.generators[name]
        except KeyError:
            raise UnknownName("generator", name, self.generators) from None

    def submit(
        self,
        name: str,
        /,
        *,
        seed: int | None = None,
        preview_every: int = 0,
        label: str = "",
        priority: str = "interactive",
        client: str = "",
        time_limit_s: float | None = None,
        stored: bool = True,
        **inputs: Any,
    ) -> Ticket:
        """Accept a request and return its ticket at once.

        `seed` is from 0 to 2**63 - 1 (None: a random one of 32 bits, which the recipe tells); a preview is made every
        `preview_every` steps (0: none); `label` is your own mark. A request of `priority` ``background`` gives way to
        ``interactive`` ones. Within each, clients share the device evenly; `client` names on whose behalf this is. No
        call of the generator may take longer than `time_limit_s` (None: the generator's own limit). What is not
        `stored` is returned and leaves nothing in the store. Raises UnknownName, InputError or MediaError before
        anything runs.
        """
        generator = self.generator(name)
        checked = generator.Inputs.parse(inputs)
        request = self._request(generator, checked, _seed(seed), preview_every, label)
        request = dataclasses.replace(request, stored=stored)
        return self.router.submit_many([_prioritise(request, priority, client, time_limit_s)])[0]

    def stream(
        self, name: str, /, *, seed: int | None = None, preview_every: int = 0, label: str = "", **inputs: Any
    ) -> Iterator[Event]:
        """Run a request and yield its events; leaving the iterator early cancels it. Raises as `submit` does, at once.

        A failure is raised after its Failed event.
        """
        ticket = self.submit(name, seed=seed, preview_every=preview_every, label=label, **inputs)
        return _follow(ticket)

    def generate(self, name: str, /, *, seed: int | None = None, **inputs: Any) -> Media:
        """Run a request, store what it makes and return it with `recipe` and `path`. Ctrl-C cancels it."""
        return wait([self.submit(name, seed=seed, **inputs)])[0]

    def submit_many(
        self,
        name: str,
        n: int,
        /,
        *,
        seed: int | None = None,
        preview_every: int = 0,
        priority: str = "interactive",
        client: str = "",
        time_limit_s: float | None = None,
        destination: Mapping[str, JsonValue] | None = None,
        **inputs: Any,
    ) -> list[Ticket]:
        """Accept n equal requests with the seeds seed, seed + 1, …, so that they share steps. Raises as `submit`.

        `destination` is the caller's own note of where it will write them, for whoever resumes one after a crash.
        """
        if not 1 <= n <= MAX_AT_ONCE:
            raise InputError("n", f"`n` is {n}, but must be a whole number from 1 to {MAX_AT_ONCE}")
        generator = self.generator(name)
        checked = generator.Inputs.parse(inputs)
        first = _seed(seed)
        if first > MAX_SEED - n + 1:
            raise InputError("seed", f"`seed` is {first}, but must be at most {MAX_SEED - n + 1} for {n} in a row")
        requests = [self._request(generator, checked, first + i, preview_every, str(i)) for i in range(n)]
        requests = [dataclasses.replace(each, destination=destination) for each in requests]
        return self.router.submit_many([_prioritise(request, priority, client, time_limit_s) for request in requests])

    def workflow(self, what: Path | str | Workflow) -> Graph:
        """Check a workflow, a file or what was built in Python. Raises WorkflowError with every problem."""
        from studio.workflow import compile_file

        if isinstance(what, Path | str):
            return compile_file(what, self.generators, self.plugins.reports)
        return what.compile(self.generators, self.plugins.reports)

    def run(
        self,
        what: Path | str | Workflow | Graph,
        /,
        *,
        seed: int = 0,
        fresh: bool = False,
        watch: Callable[[NodeReport], None] = lambda _: None,
        **inputs: Any,
    ) -> FlowResult:
        """Run a workflow with these inputs and return its outputs; what did not change since it last ran is remembered.

        `seed` decides the seed of every node that names none; with `fresh` nothing is remembered from before. `watch`
        is told of every change of a node. Nodes that fail stand in the result, and the others are done all the same.
        A file names models as they were pulled; a path of a model is opened only where it is one of `inputs`.
        Raises WorkflowError, UnknownName, InputError or MediaError before anything runs.
        """
        from studio.workflow import Graph, Run
        from studio.workflow.local import LocalWorker
        from studio.workflow.memo import Memo

        graph = what if isinstance(what, Graph) else self.workflow(what)
        values = graph.Inputs.parse(inputs)
        settings = {"device": self._device, "dtype": self._dtype, "invariant": self._invariant}
        worker = LocalWorker(self.generators, self.plugins.owner, self.store, lambda: self.router, settings)
        own = None if graph.file is None else [*_texts(inputs.values())]
        with Memo(self.store) as memo, nullcontext() if own is None else models.no_paths_but(own):
            return Run(graph, values, worker, self.store, memo, seed=seed, fresh=fresh, watch=watch).go()

    def load(self, what: Path | str) -> Media:
        """Read a media file, or an artifact by its id (6 characters or more), with its recipe if it has one."""
        return replay.load(what, self.store)

    def ancestry(self, what: Path | str) -> Ancestor:
        """What a media file or an artifact was made from, and that from what, as far as the store knows."""
        media = self.load(what)
        return replay.ancestry(media.sha256, media.recipe, self.store)

    def show(self, what: Path | str) -> Artifact:
        """Say what a media file or an artifact is: hash, path, type and recipe (None if it has none)."""
        media = self.load(what)
        return Artifact(media.sha256, media.path or Path(what), media.media_type, media.recipe)

    def replay(self, what: Path | str, *, elsewhere: bool = False) -> ReplayReport:
        """Make a file's or an artifact's media again from its recipe, and compare.

        A recipe that was not made in this data folder runs only with `elsewhere`: then it may name models only by hash
        or as they were pulled, and ask for no more than `studio.replay.MOST`. Raises UsageError, ModelError, InputError
        and TimedOut for these.

        What it was made from is made again first, from what is at the root, where the store has the recipes of it.
        It runs in the recorded dtype and, unless this Studio was given a device, on the recorded one if it is here.
        Raises StoreError if there is no recipe, MediaError if it cannot be read, and what `submit` raises.
        """
        original = self.load(what)
        recipe = asked = replay.recipe_of(original, what)
        ours = replay.is_ours(recipe, original.sha256, self.store)
        if not ours:
            if not elsewhere:
                raise replay.not_ours(recipe, what)
            asked = replay.with_pulled_model(recipe, self.home)
        made: dict[str, Media] = {}
        remade = []
        *line, _ = replay.ancestry(original.sha256, recipe, self.store).in_order()
        for each in line:
            if each.recipe is None:
                continue
            reason = ""
            try:
                made[each.sha256] = self._make_again(each.recipe, made)
            except UsageError as error:  # its plugin is gone, say; what was made then may still be there
                if self.store.path(each.sha256) is None:
                    raise
                reason = error.message
            identical = each.sha256 in made and made[each.sha256].sha256 == each.sha256
            remade.append(replay.Remade(each.sha256, each.recipe.generator, identical, reason))
        with nullcontext() if ours else models.no_paths_but():
            media = self._make_again(asked, made, None if ours else replay.MOST_SECONDS)
        return replay.compare(original, media, recipe, tuple(remade))

    def _make_again(self, recipe: Recipe, made: Mapping[str, Media], seconds: float | None = None) -> Media:
        """Make what a recipe tells of; `made` are media that take the place of those with these hashes.

        What the data folder cannot take has no path, and a notice that says why. Raises TimedOut if that takes more
        than `seconds`.
        """
        try:
            return self._made_again(recipe, made, seconds)
        except NotStored as error:
            return error.media.noticing([f"it is not in the store: {error.message}"])

    def _made_again(self, recipe: Recipe, made: Mapping[str, Media], seconds: float | None) -> Media:
        request = self._request_again(recipe, made, bounded=seconds is not None)
        router = self.router
        here = [engine.device for engine in router.engines]
        recorded = _name(recipe.device)
        if self._device is None and recorded not in here and _usable(recorded):
            with Engine(recorded, self._dtype, store=self.store) as engine:
                return wait([engine.submit(request)], seconds)[0]
        wanted = recorded if recorded in here else None
        return wait(router.submit_many([request], wanted), seconds)[0]

    def unfinished(self) -> list[Unfinished]:
        """List the requests that a crash left half done; those of processes that live are not among them."""
        return resume.unfinished(self.home)

    def resume(self, *ids: str) -> Resumed:
        """Take up the unfinished requests with these ids (none: all) where they were, and return their tickets.

        What cannot be taken up, because it is damaged or its generator or weights have changed, is refused with the
        reason, and the others go on. Raises UnknownName for an id that is not there.
        """
        chosen = resume.choose(self.unfinished(), ids)
        fetch = partial(_fetch, self.store)
        first = self.router.engines[0].device  # whose folder takes the checkpoints over
        host = resume.Host(self.plugins, fetch, self._folders[0], first, self.home)
        requests: dict[str, Request] = {}
        refused: dict[str, StudioError] = {}
        for found in chosen:
            try:
                requests[found.id] = host.request(found)
            except StudioError as error:
                refused[found.id] = error
        tickets = self.router.submit_many(list(requests.values()), first)
        return Resumed(dict(zip(requests, tickets, strict=True)), refused)

    def drop(self, *ids: str) -> None:
        """Give up unfinished requests: remove what was saved of them. Raises UnknownName."""
        for found in resume.choose(self.unfinished(), ids) if ids else ():
            self._folders[0].claim(found.path).unlink()

    def metrics(self) -> str:
        """What the engine has done so far, in Prometheus' text format (0.0.4)."""
        return self._metrics.text()

    def running(self) -> list[dict[str, Any]]:
        """What the engines of all living processes are doing, as `studio top --json` prints it."""
        return status.read(self.home)

    def doctor(self) -> DoctorReport:
        """Look at versions, devices, memory, threads, attention backends, the data folder and plugins."""
        from studio.doctor import examine

        return examine(self._device, self.home, self.plugins)

    def close(self) -> None:
        """Cancel what runs, wait for the step in flight, and let go of the models. May be called twice."""
        with self._lock:
            self._closed = True
            router, self._router = self._router, None
        if router is not None:
            router.close()
        self.abandon()

    def abandon(self) -> None:
        """Put away what others see of this, and wait for nothing: for a process that ends while a step does not."""
        for watching in self._statuses:
            watching.close()
        if self._trace is not None:
            self._trace.close()
        for folder in self._folders:
            folder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _request(
        self, generator: Generator, inputs: Inputs, seed: int, preview_every: int, label: str,
        invariant: bool | None = None,
    ) -> Request:  # fmt: skip
        if not _whole(preview_every) or preview_every < 0:
            message = f"`preview_every` is {preview_every!r}, but must be a whole number from 0 (none)"
            raise InputError("preview_every", message)
        invariant = self._invariant if invariant is None else invariant
        return Request(
            serve(generator, inputs, home=self.home, invariant=invariant), inputs, seed,
            self.plugins.owner(generator.name), preview_every=preview_every, label=label, invariant=invariant,
        )  # fmt: skip

    def _request_again(self, recipe: Recipe, made: Mapping[str, Media], *, bounded: bool) -> Request:
        """The request that a recipe, which may be hostile, asks for; one that is `bounded` keeps to `replay.MOST`."""
        if recipe.dtype not in DTYPES:
            raise UnknownName("dtype", recipe.dtype, DTYPES)
        if recipe.generator not in self.generators:
            raise missing(recipe.generator, recipe.plugin, self.plugins.reports)
        generator = self.generator(recipe.generator)

        def fetch(ref: MediaRef) -> Media:
            return made[ref.sha256] if ref.sha256 in made else _fetch(self.store, ref)

        inputs = generator.Inputs.from_recipe(recipe.inputs, fetch)
        if bounded:
            replay.check_bounds(recipe, inputs)
        invariant = self._invariant or bool(recipe.invariant)
        request = self._request(generator, inputs, _seed(recipe.seed), 0, "replay", invariant)
        threads = recipe.threads if recipe.threads and 1 <= recipe.threads <= torch_setup.cores() else None
        dtype = None if self._dtype else recipe.dtype
        return dataclasses.replace(request, dtype=dtype, threads=threads, parents=recipe.parents)


def _texts(values: Iterable[Any]) -> Iterator[str]:
    """The texts and paths among values that a user gave, lists taken apart."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from _texts(value)
        elif isinstance(value, str | Path):
            yield str(value)


def _fetch(store: Store, ref: MediaRef) -> Media:
    return store.open(ref.sha256)


def _follow(ticket: Ticket) -> Iterator[Event]:
    try:
        for event in ticket.events():
            yield event
            if isinstance(event, Failed):
                raise event.error
    finally:
        if not ticket.done:
            ticket.cancel()


def wait(tickets: list[Ticket], seconds: float | None = None) -> list[Media]:
    """Wait for all; whatever goes wrong, and Ctrl-C, cancels the rest. Raises TimedOut after `seconds` for one."""
    try:
        return [ticket.result(seconds) for ticket in tickets]
    except TimeoutError:
        message = f"it took longer than {seconds:g} seconds, the most that a recipe from elsewhere may"
        name = tickets[0].request.generator.name
        raise TimedOut(name, message, hint="ask for it yourself with the inputs that `studio show` tells") from None
    finally:
        for ticket in tickets:
            if not ticket.done:
                ticket.cancel()


def _prioritise(request: Request, priority: str, client: str, time_limit_s: float | None) -> Request:
    if priority not in PRIORITIES:
        raise UnknownName("priority", priority, PRIORITIES)
    if time_limit_s is not None and not time_limit_s > 0:
        raise InputError("time_limit_s", f"`time_limit_s` is {time_limit_s!r}, but must be a number of seconds above 0")
    background = priority == "background"
    return dataclasses.replace(request, background=background, client=client, time_limit_s=time_limit_s)


def _seed(seed: int | None) -> int:
    if seed is None:
        return secrets.randbits(32)
    if not _whole(seed) or not 0 <= seed <= MAX_SEED:
        raise InputError("seed", f"`seed` is {seed!r}, but must be a whole number from 0 to {MAX_SEED}")
    return seed


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _name(device: str) -> str:
    """``cuda:0`` of a recipe's ``cuda:0 (NVIDIA H200)``."""
    return device.partition(" ")[0]


def _usable(device: str) -> bool:
    """Whether a recorded device, which may be any text, is here."""
    try:
        devices.choose(_name(device))
    except UsageError:
        return False
    return True
