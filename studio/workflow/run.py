"""Running a graph: all ready nodes are submitted to the executor together, and each result makes more nodes ready.

Nodes with a cached result are not run. If a node fails, only its descendants are dropped; finished results stay in the
result cache, so the next run continues from there. All state is kept in the caller's thread; updates from the executor
arrive through a queue.

Try it: ``studio run best -p prompt="a red apple"``
"""

from __future__ import annotations

import hashlib
import queue
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from studio import models
from studio.errors import Cancelled, InputError, StudioError
from studio.inputs import Inputs
from studio.recipe import MediaRef
from studio.spec import MAX_SEED, JobSpec
from studio.store import Store
from studio.workflow.executor import Executor, JobProgress, JobResult, JobUpdate
from studio.workflow.expressions import MAX_LIST
from studio.workflow.graph import Graph, Node
from studio.workflow.resolve import Resolver, refs
from studio.workflow.result_cache import ResultCache, key_of

MAX_UNDER_WAY = 1000  # executions that the worker has at once; the engine bounds its requests too


@dataclass
class NodeReport:
    """The state of a node.

    Attributes:
        state: waiting, running, done, remembered (all its results were cached), failed, skipped (its `when` is false, a
            list it needs is empty, or a dependency was skipped) or dropped (a dependency failed).
        total, finished, remembered: numbers of its executions; `total` is 1 without `map` and `repeat`, and
            `remembered` are those with a cached result.
        position, steps, left_s: of the running executions.
        doing: the activity before their first step, such as loading a model.
        error: why it failed, or which node made it be dropped.
        notices: the notices of its generators.
    """

    name: str
    state: str = "waiting"
    total: int = 1
    finished: int = 0
    remembered: int = 0
    position: int = 0
    steps: int = 0
    doing: str = ""
    left_s: float | None = None
    seconds: float = 0.0
    error: StudioError | None = None
    notices: tuple[str, ...] = ()

    @property
    def over(self) -> bool:
        """Whether the node has ended."""
        return self.state not in ("waiting", "running")


@dataclass(frozen=True)
class FlowResult:
    """The result of a run: outputs by name (media, lists of media, plain values; failed ones are absent), and nodes."""

    outputs: dict[str, Any]
    nodes: dict[str, NodeReport]

    @property
    def failed(self) -> list[NodeReport]:
        """The nodes that failed, without those that were dropped."""
        return [each for each in self.nodes.values() if each.state == "failed"]

    def __getitem__(self, name: str) -> Any:
        return self.outputs[name]


@dataclass
class _Work:
    """A node's executions."""

    results: list[Any]
    single: bool
    begun: float
    keys: dict[int, str] = field(default_factory=dict)
    steps: dict[int, JobProgress] = field(default_factory=dict)


class WorkflowRun:
    """One run. `watch` is called in the caller's thread with a report whenever a node's state or progress changes."""

    def __init__(
        self,
        graph: Graph,
        values: Inputs,
        executor: Executor,
        store: Store,
        results: ResultCache,
        *,
        seed: int = 0,
        fresh: bool = False,
        watch: Callable[[NodeReport], None] = lambda _: None,
    ) -> None:
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= MAX_SEED:
            raise InputError("seed", f"`seed` is {seed!r}, but must be a whole number from 0 to {MAX_SEED}")
        self.graph, self.reports = graph, {name: NodeReport(name) for name in graph.nodes}
        self._given, self._executor, self._store, self._results = values, executor, store, results
        self._seed, self._fresh, self._watch = seed, fresh, watch
        self._resolver = Resolver(store)
        self._missing = {name: set(node.needs & set(graph.nodes)) for name, node in graph.nodes.items()}
        self._followers: dict[str, list[str]] = {name: [] for name in graph.nodes}
        for name, needs in self._missing.items():
            for need in needs:
                self._followers[need].append(name)
        self._ready = deque(name for name, needs in self._missing.items() if not needs)
        self._work: dict[str, _Work] = {}
        self._asked = _asked(graph)
        self._used: set[str] = set()
        self._jobs: deque[tuple[JobSpec, Callable[[JobUpdate], None]]] = deque()  # not submitted yet
        self._under_way = 0
        self._updates: queue.SimpleQueue[tuple[str, int, JobUpdate]] = queue.SimpleQueue()
        self._stopped = self._paused = False

    def go(self) -> FlowResult:
        """Run to the end. Ctrl-C cancels running jobs; finished results stay cached."""
        for name in self.graph.inputs:
            self._resolver.values[name] = self._resolver.named(getattr(self._given, name))
        try:
            self._loop()
        except BaseException:
            if self._paused:
                self._executor.pause()
            else:
                self._executor.cancel()
            raise
        finally:
            asked = [ref.sha256 for name in self._shown() for ref in refs(self._resolver.values[name])]
            self._results.finish(self._used, asked)
        outputs = {output: self._opened(self._resolver.values[name]) for output, name in self.graph.outputs.items()
                   if name in self._resolver.values}  # fmt: skip
        return FlowResult(outputs, self.reports)

    def stop(self, *, pause: bool = False) -> None:
        """End the run early, from any thread: `go` raises Cancelled, and finished results stay cached. `pause` saves
        the states of its requests, so that a later run continues them.
        """
        self._stopped, self._paused = True, pause
        self._updates.put(("", 0, JobProgress(0, 0)))

    def _shown(self) -> list[str]:
        return [name for name in self.graph.outputs.values() if name in self._resolver.values]

    def _loop(self) -> None:
        while True:
            tasks: list[tuple[JobSpec, Callable[[JobUpdate], None]]] = []
            while self._ready:
                self._jobs += self._begin(self.graph.nodes[self._ready.popleft()])
            while self._jobs and len(tasks) + self._under_way < MAX_UNDER_WAY:
                tasks.append(self._jobs.popleft())
            if tasks:
                self._under_way += len(tasks)
                self._executor.submit(tasks)
            if not self._work:
                return
            if self._stopped:
                raise Cancelled("the workflow was cancelled")
            self._take(*self._updates.get())
            while not self._updates.empty():
                self._take(*self._updates.get())

    def _begin(self, node: Node) -> list[tuple[JobSpec, Callable[[JobUpdate], None]]]:
        """Start a node whose dependencies are done; return the jobs to submit for it."""
        try:
            if not self._resolver.holds(node):
                self._end(node.name, "skipped")
                return []
            if node.kind != "make":
                self._resolver.values[node.name] = self._plain(node)
                self._end(node.name, "done")
                return []
            if (name := self._resolver.lacking(node)) is not None:
                self.reports[node.name].notices = (f"skipped: `{name}` is an empty list, and needs at least one item",)
                self._end(node.name, "skipped")
                return []
            locals_ = list(self._locals(node))
            tasks = [self._task(node, index, local) for index, local in enumerate(locals_)]
            return self._look_up(node, tasks)
        except StudioError as error:
            self._work.pop(node.name, None)
            self._fail(node.name, error)
            return []

    def _plain(self, node: Node) -> Any:
        """The value of a node without a generator."""
        if node.kind == "value":
            return self._resolver.value(node, node.inputs["value"], {})
        members = self._resolver.value(node, node.inputs["from"], {})
        if not members and node.best is not None:
            return []
        scores = self._resolver.scores(self._resolver.value(node, node.inputs["by"], {}))
        if len(scores) != len(members):
            raise InputError("by", f"`pick` has {len(scores)} scores for {len(members)} items")
        if not members:
            raise InputError("pick", "`pick` got an empty list", hint="with `best:` it returns an empty list")
        count = 1 if node.best is None else self._resolver.whole(node, "best", node.best, 1, len(members))
        order = sorted(range(len(members)), key=lambda index: -scores[index])[:count]
        chosen = [members[index] for index in order]
        return chosen if node.best is not None else chosen[0]

    def _locals(self, node: Node) -> Iterator[dict[str, Any]]:
        """The local names of each execution of a `map` or `repeat`."""
        if node.map is not None:
            items = self._resolver.value(node, node.map, {})
            if len(items) > MAX_LIST:
                raise InputError("map", f"`map` got {len(items):,} items; the limit is {MAX_LIST:,}")
            yield from ({"item": item, "index": i, "number": i + 1} for i, item in enumerate(items))
        elif node.repeat is not None:
            count = self._resolver.whole(node, "repeat", node.repeat, 0, MAX_LIST)
            yield from ({"index": i, "number": i + 1} for i in range(count))
        else:
            yield {}

    def _task(self, node: Node, index: int, local: Mapping[str, Any]) -> JobSpec:
        assert node.generator is not None
        inputs, parents = self._resolver.inputs(node, local)
        if node.seed is not None:
            seed = self._resolver.whole(node, "seed", node.seed, 0, MAX_SEED - MAX_LIST)
        else:
            seed = int.from_bytes(hashlib.sha256(f"{self._seed}/{node.name}".encode()).digest()[:4], "big")
        label = f"{node.name}[{index}]" if local else node.name
        return JobSpec(generator=node.generator.name, inputs=inputs, seed=seed + index, parents=parents, label=label)

    def _look_up(self, node: Node, tasks: list[JobSpec]) -> list[tuple[JobSpec, Callable[[JobUpdate], None]]]:
        """Use cached results, and return the jobs that remain."""
        report = self.reports[node.name]
        single = node.map is None and node.repeat is None
        work = self._work[node.name] = _Work([None] * len(tasks), single, time.monotonic())
        todo: list[tuple[JobSpec, Callable[[JobUpdate], None]]] = []
        for index, task in enumerate(tasks):
            key = work.keys[index] = key_of(self._executor.identity(task), task.inputs, task.seed)
            found = None if self._fresh else self._results.find(key)
            while self._results.notices:
                report.notices = (*report.notices, self._results.notices.pop(0))
            if found is None:
                todo.append((task, partial(self._report, node.name, index)))
            else:
                work.results[index] = found
                self._used.add(key)
        report.total, report.remembered = len(tasks), len(tasks) - len(todo)
        report.finished = report.remembered
        if todo:
            report.state = "running"
            self._watch(report)
        else:
            self._complete(node.name)
        return todo

    def _report(self, name: str, index: int, update: JobUpdate) -> None:
        self._updates.put((name, index, update))

    def _take(self, name: str, index: int, update: JobUpdate) -> None:
        """Handle an update of an execution."""
        self._under_way -= isinstance(update, JobResult)
        work = self._work.get(name)
        if work is None:
            return
        report = self.reports[name]
        if isinstance(update, JobProgress):
            work.steps[index] = update
        else:
            work.steps.pop(index, None)
            report.finished += 1
            report.notices = tuple(dict.fromkeys([*report.notices, *update.notices]))
            self._result(name, index, work, update)
        report.position = sum(step.position for step in work.steps.values())
        report.steps = sum(step.steps for step in work.steps.values())
        report.doing = next((step.doing for step in work.steps.values() if step.doing), "")
        report.left_s = max((step.left_s for step in work.steps.values() if step.left_s is not None), default=None)
        if report.finished == report.total:
            self._complete(name)
        else:
            self._watch(report)

    def _result(self, name: str, index: int, work: _Work, outcome: JobResult) -> None:
        if outcome.made is None:
            error = outcome.error or StudioError("the executor reported neither media nor an error")
            self.reports[name].error = self.reports[name].error or error
            return
        work.results[index] = outcome.made
        self._results.add(work.keys[index], outcome.made, intermediate=name not in self._asked)
        self._used.add(work.keys[index])

    def _complete(self, name: str) -> None:
        """End a node whose executions have all ended."""
        work, report = self._work.pop(name), self.reports[name]
        report.seconds = round(time.monotonic() - work.begun, 3)
        report.left_s = None
        if report.error is not None:
            self._fail(name, report.error)
            return
        self._resolver.values[name] = work.results[0] if work.single else work.results
        self._end(name, "remembered" if 0 < report.total == report.remembered else "done")

    def _end(self, name: str, state: str) -> None:
        """End a node; its followers become ready, or are skipped too."""
        self.reports[name].state = state
        self._watch(self.reports[name])
        for follower in self._followers[name]:
            if self.reports[follower].state != "waiting":
                continue
            if state == "skipped":
                self._end(follower, "skipped")
                continue
            self._missing[follower].discard(name)
            if not self._missing[follower]:
                self._ready.append(follower)

    def _fail(self, name: str, error: StudioError) -> None:
        report = self.reports[name]
        report.state, report.error = "failed", error
        self._watch(report)
        for follower in self.graph.descendants(name):
            lost = self.reports[follower]
            if lost.state == "waiting":
                lost.state, lost.error = "dropped", StudioError(f"it depends on `{name}`, which failed")
                self._watch(lost)

    def _opened(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._opened(each) for each in value]
        return self._store.open(value.sha256) if isinstance(value, MediaRef) else value


def allowed_paths(graph: Graph, given: Mapping[str, Any]) -> AbstractContextManager[None]:
    """The context in which a graph is run with these inputs: a workflow file can name models only as pulled, or as one
    of the inputs.
    """
    return nullcontext() if graph.file is None else models.no_paths_but([*_texts(given.values())])


def _texts(values: Iterable[Any]) -> Iterator[str]:
    """The texts and paths among a user's values, including those in lists."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from _texts(value)
        elif isinstance(value, str | Path):
            yield str(value)


def _asked(graph: Graph) -> set[str]:
    """The nodes whose media are outputs of the workflow, directly or through nodes that pass values on."""
    found: set[str] = set()
    waiting = list(graph.outputs.values())
    while waiting:
        name = waiting.pop()
        if name in graph.nodes and name not in found:
            found.add(name)
            if graph.nodes[name].kind != "make":
                waiting += graph.nodes[name].needs
    return found
