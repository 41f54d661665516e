"""The MCP server: tools and outputs of a Studio for agents, over standard input and output, or over HTTP (see `http`).

Calls run at the same time. A call of an agent that asks for progress gets it from the events of the engine; a call that
is cancelled cancels its request. Errors of inputs are answers that an agent can read, with the remedy.

Try it: name ``studio mcp`` as the command of an MCP server in a client such as Claude Desktop
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.shared.exceptions import MCPError

from studio import models
from studio.api import Studio
from studio.caching import cached_property
from studio.engine import Progress, Ticket
from studio.errors import Cancelled, InputError, StudioError, UnknownName, UsageError
from studio.generator import Generator
from studio.jobs.job import Job, JobState
from studio.jobs.jobs import Jobs
from studio.media import Media
from studio.server.catalogue import Catalogue
from studio.server.errors import problem_of
from studio.server.jobs import error_json
from studio.server.mcp import content, tools
from studio.server.running import client_of
from studio.versions import libraries

if TYPE_CHECKING:
    from studio.workflow import FlowResult

CLIENT = "mcp"
MOST_WORKFLOWS = 32  # that run at once
Context = ServerRequestContext[Any, Any]
_ABOUT = (
    "Generates pictures, videos, sound and text on this machine. Outputs have ids; give them as inputs of other calls. "
    "Every output is reproducible from its seed and labelled as made by AI."
)


def run(studio: Studio) -> None:
    """Serve over standard input and output until the client closes them. What plugins print goes to standard error."""

    async def serve() -> None:
        agents = Agents(studio)
        async with stdio_server() as (reading, writing):
            await agents.server.run(reading, writing, agents.server.create_initialization_options())
        await asyncio.to_thread(agents.close)

    asyncio.run(serve())


class Agents:
    """The handlers of one server; `server` runs them over any transport."""

    def __init__(self, studio: Studio, jobs: Jobs | None = None, *, local: bool = True) -> None:
        """`jobs` are those of a server that runs them; the default are opened when they are needed. `local` agents are
        told paths of this machine.
        """
        self._studio, self._given, self._local = studio, jobs, local
        self._catalogue = Catalogue(studio)
        self._opened: Jobs | None = None
        self._opening = threading.Lock()
        self._flows = anyio.CapacityLimiter(MOST_WORKFLOWS)  # each waits in a thread that nothing else may need
        self.server: Server[Any] = Server(
            "studio",
            version=libraries()["studio"],
            instructions=_ABOUT,
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
            on_list_resource_templates=self._list_templates,
            on_list_resources=self._list_resources,
            on_read_resource=self._read_resource,
        )

    def close(self) -> None:
        """Stop running jobs; those that are not done go on when a process runs jobs again."""
        if self._opened is not None:
            self._opened.close()

    @property
    def _jobs(self) -> Jobs:
        """The jobs of the data folder, which this process runs if no other does."""
        if self._given is not None:
            return self._given
        with self._opening:
            if self._opened is None:
                jobs = Jobs(self._studio)
                with suppress(UsageError):  # another process runs them
                    jobs.start()
                self._opened = jobs
            return self._opened

    @cached_property
    def _usual(self) -> dict[str, Generator]:
        return tools.usual(self._catalogue)

    @cached_property
    def _calls(self) -> Mapping[str, Callable[[Context, dict[str, Any]], Any]]:
        return {
            "generate": self._generate, "list_generators": self._generators, "list_models": self._models,
            "list_workflows": self._workflows, "run_workflow": self._workflow, "get_artifact": self._artifact,
            "list_jobs": self._list_jobs, "get_job": self._get_job, "cancel_job": self._cancel_job,
        }  # fmt: skip

    async def _list_tools(self, _: Context, __: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        return types.ListToolsResult(tools=await asyncio.to_thread(tools.tools, self._catalogue))

    async def _list_templates(
        self, _: Context, __: types.PaginatedRequestParams | None
    ) -> types.ListResourceTemplatesResult:
        found = types.ResourceTemplate(
            name="output", uri_template=tools.URI + "{id}", description="an output by its id"
        )
        return types.ListResourceTemplatesResult(resource_templates=[found])

    async def _list_resources(self, _: Context, __: types.PaginatedRequestParams | None) -> types.ListResourcesResult:
        return types.ListResourcesResult(resources=[])  # there may be very many: outputs are linked where they are made

    async def _read_resource(self, _: Context, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
        try:
            found = await asyncio.to_thread(content.resource, self._studio, str(params.uri))
        except StudioError as error:
            raise MCPError(types.INVALID_PARAMS, self._said(error)) from error
        return types.ReadResourceResult(contents=[found])

    async def _call_tool(self, context: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
        given, usual = dict(params.arguments or {}), self._usual.get(params.name)
        if usual is None and params.name not in self._calls:
            known = (*self._usual, *self._calls)
            raise MCPError(types.INVALID_PARAMS, self._said(UnknownName("tool", params.name, known)))
        try:
            if usual is not None:
                return await self._run(context, usual, given)
            made: types.CallToolResult = await self._calls[params.name](context, given)
            return made
        except Exception as error:
            if self._local and not isinstance(error, StudioError):
                raise
            return types.CallToolResult(content=[types.TextContent(text=self._said(error))], is_error=True)

    def _said(self, error: Exception) -> str:
        """An error for an agent: the message and the remedy. Agents elsewhere are told no paths (see `problem_of`)."""
        if not self._local or not isinstance(error, StudioError):
            return problem_of(error).message
        return f"{error.message}\nhint: {error.hint}" if error.hint else error.message

    async def _generate(self, context: Context, given: dict[str, Any]) -> types.CallToolResult:
        _check(given, "generator", "inputs", "seed", "background")
        inputs = given.pop("inputs", None) or {}
        if not isinstance(inputs, dict):
            raise InputError("inputs", f"`inputs` must be an object, not {type(inputs).__name__}")
        return await self._run(context, self._studio.generator(str(given.pop("generator", ""))), {**inputs, **given})

    async def _run(self, context: Context, generator: Generator, given: dict[str, Any]) -> types.CallToolResult:
        """Run a request, in the background if asked; a call that is cancelled cancels it."""
        background = given.pop("background", False)
        if not isinstance(background, bool):
            raise InputError("background", f"`background` is {background!r}, but must be true or false")
        if background:
            job = await asyncio.to_thread(self._add, generator, given, _client(context))
            return _facts({"job": job.id, "state": job.state.value})
        ticket = await asyncio.to_thread(self._submit, generator, given, _client(context))
        try:
            async for event in ticket.events():
                if isinstance(event, Progress):
                    await context.session.report_progress(event.position, event.steps, f"{event.eta_s:.0f} s left")
            return await asyncio.to_thread(self._made, await ticket)
        finally:
            if not ticket.done:
                ticket.cancel()

    def _submit(self, generator: Generator, given: dict[str, Any], client: str) -> Ticket:
        inputs = self._inputs(generator, given)
        with models.no_paths_but():
            return self._studio.submit(generator.name, client=client, **inputs)

    def _add(self, generator: Generator, given: dict[str, Any], client: str) -> Job:
        """Accept a job."""
        inputs = self._inputs(generator, given)
        with models.no_paths_but():
            return self._jobs.add(self._jobs.spec(generator.name, client=client, **inputs))

    def _inputs(self, generator: Generator, given: dict[str, Any]) -> dict[str, Any]:
        """The inputs and the seed, with media opened. Raises UnknownName for another option of a request."""
        allowed = {"seed", *generator.Inputs.model_fields}
        aliases = {name for flag in generator.Inputs.flags() for alias in flag.aliases for name in alias.names}
        for name in given:
            if name not in allowed | aliases:
                raise UnknownName("input", name, sorted(allowed))
        return content.opened(self._studio, generator.Inputs, given, local=self._local)

    async def _list_jobs(self, context: Context, given: dict[str, Any]) -> types.CallToolResult:
        _check(given)
        found = await asyncio.to_thread(lambda: self._jobs.list(client=_client(context)))
        return _facts({"jobs": [_state(each, local=self._local) for each in found]})

    async def _get_job(self, context: Context, given: dict[str, Any]) -> types.CallToolResult:
        _check(given, "id")

        def look() -> types.CallToolResult:
            job = self._job(context, given)
            state = _state(job, local=self._local)
            blocks: list[types.ContentBlock] = [types.TextContent(text=json.dumps(state, ensure_ascii=False))]
            for each in job.artifacts:
                blocks += content.shown(self._studio.store.open(each.sha256), local=self._local)
            failed = job.state in (JobState.FAILED, JobState.QUARANTINED)
            return types.CallToolResult(content=blocks, structured_content=state, is_error=failed)

        return await asyncio.to_thread(look)

    async def _cancel_job(self, context: Context, given: dict[str, Any]) -> types.CallToolResult:
        _check(given, "id")
        job = await asyncio.to_thread(lambda: self._jobs.cancel(self._job(context, given).id))
        return _facts(_state(job, local=self._local))

    def _job(self, context: Context, given: dict[str, Any]) -> Job:
        """One of the client's jobs. Raises UnknownName."""
        name = str(given.get("id", ""))
        job = self._jobs.get(name)
        if job.client != _client(context):
            raise UnknownName("job", name[:100], ())
        return job

    def _made(self, media: Media) -> types.CallToolResult:
        facts = content.described(media, local=self._local)
        return types.CallToolResult(content=content.shown(media, local=self._local), structured_content=facts)

    async def _artifact(self, _: Context, given: dict[str, Any]) -> types.CallToolResult:
        _check(given, "id")
        return await asyncio.to_thread(
            lambda: self._made(content.found(self._studio, "id", given.get("id"), local=self._local))
        )

    async def _generators(self, _: Context, given: dict[str, Any]) -> types.CallToolResult:
        _check(given, "name")
        if given.get("name"):
            found = self._studio.generator(str(given["name"]))
            return _facts({**_summary(found), "inputs": tools.schema(found, options=False)})
        return _facts({"generators": [_summary(each) for each in self._studio.generators.values()]})

    async def _models(self, _: Context, given: dict[str, Any]) -> types.CallToolResult:
        _check(given)
        library = models.Models(self._studio.home)
        entries = await asyncio.to_thread(library.entries)
        found = [{"source": name, "state": library.state(models.parse(name))} for name in entries]
        return _facts({"models": found})

    async def _workflows(self, _: Context, given: dict[str, Any]) -> types.CallToolResult:
        from studio.workflow.shipped import about, shipped

        _check(given)

        def described() -> list[dict[str, Any]]:
            return [
                {"name": name, "about": about(path), "inputs": self._studio.workflow(path).Inputs.model_json_schema()}
                for name, path in shipped().items()
            ]

        return _facts({"workflows": await asyncio.to_thread(described)})

    async def _workflow(self, context: Context, given: dict[str, Any]) -> types.CallToolResult:
        from studio.workflow.shipped import shipped

        _check(given, "name", "inputs", "seed")
        known = shipped()
        name = str(given.get("name", ""))
        if name not in known:
            raise UnknownName("workflow", name, known)
        async with _reported(context) as watch:
            call = partial(self._flow, known[name], given, _client(context), watch)
            result = await anyio.to_thread.run_sync(call, limiter=self._flows, abandon_on_cancel=True)
        if result.failed:
            assert result.failed[0].error is not None
            raise result.failed[0].error
        blocks: list[types.ContentBlock] = []
        for each in result.outputs.values():
            for one in each if isinstance(each, list) else [each]:
                blocks += (
                    content.shown(one, local=self._local)
                    if isinstance(one, Media)
                    else [types.TextContent(text=str(one))]
                )
        return types.CallToolResult(content=blocks)

    def _flow(self, file: Path, given: dict[str, Any], client: str, watch: Callable[[Any], None]) -> FlowResult:
        graph = self._studio.workflow(file)
        inputs = content.opened(self._studio, graph.Inputs, given.get("inputs") or {}, local=self._local)
        with models.no_paths_but():
            return self._studio.run(graph, inputs, seed=given.get("seed", 0), client=client, watch=watch)


@asynccontextmanager
async def _reported(context: Context) -> AsyncIterator[Callable[[Any], None]]:
    """Yield a function that reports the ended nodes of a workflow as progress; a cancelled call ends the workflow."""
    loop, ended, over = asyncio.get_running_loop(), set[str](), False

    def watch(report: Any) -> None:
        if over:
            raise Cancelled("the call was cancelled")
        if report.over and report.name not in ended:
            ended.add(report.name)
            said = context.session.report_progress(len(ended), None, report.name)
            asyncio.run_coroutine_threadsafe(said, loop)

    try:
        yield watch
    finally:
        over = True


def _client(context: Context) -> str:
    """The name under which devices are shared fairly, and whose jobs an agent sees: over HTTP that of the token."""
    return CLIENT if context.request is None else client_of(context.request)


def _facts(found: dict[str, Any]) -> types.CallToolResult:
    text = json.dumps(found, ensure_ascii=False)
    return types.CallToolResult(content=[types.TextContent(text=text)], structured_content=found)


def _state(job: Job, *, local: bool) -> dict[str, Any]:
    """A job for an agent; agents elsewhere (not `local`) are told no paths."""
    found: dict[str, Any] = {"job": job.id, "generator": job.name, "state": job.state.value}
    if job.asked == "cancel":
        found["state"] = "cancelling"
    if job.progress is not None:
        found |= {"position": job.progress.position, "steps": job.progress.steps}
    if job.error is not None:
        said = f"{job.error.message}\nhint: {job.error.hint}" if job.error.hint else job.error.message
        found["error"] = said if local else error_json(job.error)["message"]
    return found | {"outputs": [each.sha256 for each in job.artifacts]}


def _summary(generator: Generator) -> dict[str, Any]:
    return {"name": generator.name, "output": generator.output.kind, "summary": generator.summary}


def _check(given: Mapping[str, Any], *known: str) -> None:
    """Raise UnknownName for an argument that the tool does not have."""
    for name in given:
        if name not in known:
            raise UnknownName("argument", name, known)
