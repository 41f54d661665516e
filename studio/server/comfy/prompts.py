"""Prompts: graphs that were accepted, run as jobs and remembered, with the messages that ComfyUI's clients wait for.

The jobs outlive the server. The queue and the history are in memory, as ComfyUI's are; a prompt that is sent again with
its `prompt_id` after a restart finds its jobs. A client sees only prompts of its own access token.

Try it: ``pytest tests/studio/server/comfy``
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
import struct
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from studio import models
from studio.errors import Busy, Cancelled, StoreError, UsageError
from studio.jobs import JobEvent, Jobs, JobState
from studio.jobs.job import JobError
from studio.server.comfy.compile import Compiled
from studio.server.comfy.scene import file_name
from studio.server.comfy.sockets import Sockets
from studio.server.comfy.values import Render, Saved
from studio.server.errors import problem_of
from studio.server.jobs import error_json
from studio.server.running import apart

MAX_PENDING = 1000
MAX_HISTORY = 500
_PREVIEWS = 5  # of one render: each costs a decoding of its latents
_POLL_S = 0.01  # for each waiting prompt, so that a long queue costs no more than a short one
_PNG_FRAME = struct.pack(">II", 1, 2)  # ComfyUI's numbers of the event, a preview, and of the format


@dataclass(frozen=True)
class SavedFiles:
    """An output node: its id, the type of its files, and the render whose pictures it saves, or else their ids."""

    node: str
    folder: str
    render: Render | None
    pictures: Sequence[str]


@dataclass(eq=False)
class QueuedPrompt:
    """One accepted graph.

    Attributes:
        client, sid: the token's name, and the websocket that gets the messages.
        graph: as it was sent.
        front: whether its jobs go before the client's others.
        state: ``pending``, ``running``, ``success``, ``error`` or ``interrupted``.
        outputs: by output node, in ComfyUI's form.
        number: in the order of acceptance.
        messages: ComfyUI's, for the history.
        node: the current node.
        cancelled: whether the client has cancelled it.
        saved: what its output nodes save.
        jobs: the ids of the jobs of each render.
        pictures: the ids of the pictures of each render.
    """

    id: str
    client: str
    sid: str
    graph: Mapping[str, Any]
    compiled: Compiled
    front: bool = False
    state: str = "pending"
    number: int = 0
    outputs: dict[str, Any] = field(default_factory=dict)
    messages: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    node: str = ""
    cancelled: bool = False
    saved: Sequence[SavedFiles] = ()
    jobs: dict[Render, list[str]] = field(default_factory=dict)
    pictures: dict[Render, list[str]] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Whether it is in the history."""
        return self.state in ("success", "error", "interrupted")

    def in_queue(self) -> list[Any]:
        """Its item in ``/queue``."""
        return [self.number, self.id, self.graph, {"client_id": self.sid}, [each.node for each in self.saved]]

    def in_history(self) -> dict[str, Any]:
        """Its item in ``/history``."""
        good = self.state == "success"
        status = {"status_str": "success" if good else "error", "completed": good,
                  "messages": [[kind, data] for kind, data in self.messages]}  # fmt: skip
        meta = {node: {"node_id": node, "display_node": node, "parent_node": None, "real_node_id": node}
                for node in self.outputs}  # fmt: skip
        return {"prompt": self.in_queue(), "outputs": self.outputs, "status": status, "meta": meta}


class JobFailed(Exception):
    """A job of a prompt has failed."""

    def __init__(self, error: JobError) -> None:
        super().__init__(error_json(error)["message"])
        self.kind = error.title


class Prompts:
    """The queue and the history. Used in the event loop only."""

    def __init__(self, jobs: Jobs) -> None:
        self.sockets = Sockets()
        self._jobs = jobs
        self._numbers = itertools.count()
        self._all: dict[tuple[str, str], QueuedPrompt] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def of(self, client: str, *, ended: bool) -> list[QueuedPrompt]:
        """The prompts of a client that have ended, or have not, oldest first."""
        return [each for each in self._all.values() if each.client == client and each.ended is ended]

    def find(self, client: str, id: str) -> QueuedPrompt | None:
        """A prompt by its id."""
        return self._all.get((client, id))

    def status(self, client: str) -> dict[str, Any]:
        """ComfyUI's `exec_info`."""
        return {"exec_info": {"queue_remaining": len(self.of(client, ended=False))}}

    async def add(self, prompt: QueuedPrompt) -> QueuedPrompt:
        """Accept a prompt: when this returns, its pictures and its jobs are on disk, except the jobs that change the
        pictures of others. Raises Busy if too many are in the queue, and as `Jobs.add`.
        """
        if sum(not each.ended for each in self._all.values()) >= MAX_PENDING:
            raise Busy(f"{MAX_PENDING:,} prompts are in the queue")
        self._all[prompt.client, prompt.id] = prompt
        prompt.number = next(self._numbers)
        try:
            for render in prompt.compiled.renders:
                if render.earlier is None:
                    await self._add_jobs(prompt, render)
            prompt.saved = [await self._stored(each) for each in prompt.compiled.saved]
            prompt.compiled = replace(prompt.compiled, saved=())  # its pictures are not needed any more
        except Exception:
            del self._all[prompt.client, prompt.id]
            await self._cancel(prompt)
            raise
        task = asyncio.ensure_future(self._run(prompt))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.sockets.status(prompt.client, self.status(prompt.client))
        return prompt

    async def _stored(self, saved: Saved) -> SavedFiles:
        """What an output node saves, without the picture, which is put into the store."""
        image = saved.picture.image
        if image is not None:
            await apart(self._jobs.studio.store.put, image)
        found = [image.sha256] if image is not None else []
        return SavedFiles(saved.node, saved.folder, saved.picture.render, found)

    async def interrupt(self, client: str, id: str | None) -> None:
        """Cancel a running prompt: the oldest, if none is named."""
        running = [each for each in self.of(client, ended=False) if each.state == "running"]
        for each in [each for each in running if id in (None, each.id)][:1]:
            await self._cancel(each)

    async def delete(self, client: str, ids: Sequence[str] | None, *, ended: bool) -> None:
        """Remove prompts from the history, or such as are not running from the queue; all of them without `ids`."""
        for each in self.of(client, ended=ended):
            if (ids is None or each.id in ids) and each.state != "running":
                self._all.pop((client, each.id), None)
                if not ended:
                    await self._cancel(each)
        self.sockets.status(client, self.status(client))

    async def _cancel(self, prompt: QueuedPrompt) -> None:
        prompt.cancelled = True
        for id in [id for ids in prompt.jobs.values() for id in ids]:
            await apart(self._jobs.cancel, id)

    async def _add_jobs(self, prompt: QueuedPrompt, render: Render) -> None:
        """Add the jobs of a render, once for each prompt, render and picture."""

        def add() -> None:
            values = {**render.choice.values, **render.values, "client": prompt.client}
            if prompt.sid:
                values["preview_every"] = max(1, values["steps"] // _PREVIEWS)
            if render.earlier is not None:
                values["image"] = self._jobs.studio.store.open(prompt.pictures[render.earlier][0])
            with models.no_paths_but():
                spec = self._jobs.spec(render.choice.generator.name, **values)
                for index in range(render.count):
                    text = "/".join((prompt.id, render.node, str(index)))
                    key = f"comfyui-{hashlib.sha256(text.encode()).hexdigest()}"
                    job = self._jobs.add(spec.model_copy(update={"seed": spec.seed + index}), key=key)
                    prompt.jobs.setdefault(render, []).append(job.id)
            render.values.clear()  # its pictures are in the store now
            for id in reversed(prompt.jobs[render] if prompt.front else []):
                with suppress(UsageError):  # it runs already
                    self._jobs.move(id, first=True)

        await apart(add)

    def _tell(self, prompt: QueuedPrompt, kind: str, *, keep: bool = False, **data: Any) -> None:
        data |= {"prompt_id": prompt.id, "timestamp": int(time.time() * 1000)} if keep else {"prompt_id": prompt.id}
        if keep:
            prompt.messages.append((kind, data))
        self.sockets.publish(prompt.client, prompt.sid, kind, data)

    def _at(self, prompt: QueuedPrompt, node: str) -> None:
        prompt.node = node
        self._tell(prompt, "executing", node=node, display_node=node)

    async def _run(self, prompt: QueuedPrompt) -> None:
        """Follow the renders one after another, and report what is saved and how the prompt ends."""
        where: dict[str, Any] = {}
        try:
            await self._follow_all(prompt)
            state, kind = "success", "execution_success"
        except Cancelled:
            state, kind, where = "interrupted", "execution_interrupted", self._where(prompt)
        except Exception as error:
            state, kind, where = "error", "execution_error", {**self._where(prompt), **_said(error)}
        prompt.state, prompt.compiled = state, Compiled((), ())
        prompt.jobs.clear()
        prompt.pictures.clear()
        prompt.saved = [replace(each, render=None) for each in prompt.saved]
        self._tell(prompt, kind, keep=True, **where)
        self._tell(prompt, "executing", node=None)
        self.sockets.status(prompt.client, self.status(prompt.client))
        self._forget()

    async def _follow_all(self, prompt: QueuedPrompt) -> None:
        """Save what is there already, then follow one render after another, and save what uses it."""
        self._tell(prompt, "execution_start", keep=True)
        self._tell(prompt, "execution_cached", keep=True, nodes=[])
        await self._save(prompt, None)
        for render in prompt.compiled.renders:
            prompt.node = render.node
            if render not in prompt.jobs:
                await self._add_jobs(prompt, render)
            if prompt.cancelled:  # also while the jobs were being added
                await self._cancel(prompt)
            prompt.pictures[render] = await self._pictures(prompt, render)
            await self._save(prompt, render)

    async def _pictures(self, prompt: QueuedPrompt, render: Render) -> list[str]:
        """Follow the jobs of a render. If one fails, the others are cancelled. Raises Cancelled, JobFailed."""
        ids = prompt.jobs[render]
        progress = [(0, 0)] * len(ids)
        following = [asyncio.ensure_future(self._follow(prompt, id, i, progress)) for i, id in enumerate(ids)]
        try:
            return [*await asyncio.gather(*following)]
        except (Cancelled, JobFailed):
            await self._cancel(prompt)
            raise
        finally:
            for each in following:
                each.cancel()

    async def _follow(self, prompt: QueuedPrompt, id: str, index: int, progress: list[tuple[int, int]]) -> str:
        """Report the events of one job until its picture is there, and return its id."""
        while (await apart(self._jobs.get, id)).state in (JobState.QUEUED, JobState.PAUSED):
            waiting = sum(each.state == "pending" for each in self._all.values())
            await asyncio.sleep(_POLL_S * max(1, waiting))
        async for event in self._jobs.events_async(id):
            if event.type != "state":
                self._hear(prompt, event, index, progress)
                continue
            match JobState(event.data["state"]):
                case JobState.RUNNING if prompt.state == "pending" or not any(steps for _, steps in progress):
                    prompt.state = "running"
                    self._at(prompt, prompt.node)
                case JobState.DONE:
                    return str(event.data["artifacts"][0]["sha256"])
                case JobState.CANCELLED:
                    raise Cancelled("the prompt was cancelled")
                case JobState.FAILED | JobState.QUARANTINED:
                    raise JobFailed(JobError.model_validate(event.data["error"]))
        raise Cancelled("the job was removed")

    def _hear(self, prompt: QueuedPrompt, event: JobEvent, index: int, progress: list[tuple[int, int]]) -> None:
        if event.type in ("started", "progress"):
            progress[index] = (event.data.get("position", 0), event.data["steps"])
            done, steps = (sum(part) for part in zip(*progress, strict=True))
            self._tell(prompt, "progress", value=done, max=steps, node=prompt.node)
        elif event.type == "preview" and index == 0 and (data := event.data["media"].get("data")):
            self.sockets.preview(prompt.client, prompt.sid, _PNG_FRAME + base64.b64decode(data))

    async def _save(self, prompt: QueuedPrompt, render: Render | None) -> None:
        """Report or send the pictures of output nodes: those of a render, or loaded ones."""
        for saved in [each for each in prompt.saved if each.render is render]:
            self._at(prompt, saved.node)
            found = saved.pictures if render is None else prompt.pictures[render]
            if not saved.folder:
                await self._send(prompt, found)
                continue
            files = [{"filename": file_name(each), "subfolder": "", "type": saved.folder} for each in found]
            prompt.outputs[saved.node] = {"images": files}
            self._tell(prompt, "executed", node=saved.node, display_node=saved.node, output=prompt.outputs[saved.node])

    async def _send(self, prompt: QueuedPrompt, pictures: Sequence[str]) -> None:
        """Send whole pictures, as previews are sent."""
        for each in pictures:
            path = self._jobs.studio.store.path(each)
            if path is None:
                raise StoreError(f"the store has no artifact `{each}`")
            self.sockets.send(prompt.client, prompt.sid, _PNG_FRAME + await apart(path.read_bytes))

    @staticmethod
    def _where(prompt: QueuedPrompt) -> dict[str, Any]:
        """ComfyUI's fields of where a prompt ended."""
        kind = str(prompt.graph.get(prompt.node, {}).get("class_type", ""))
        return {"node_id": prompt.node, "node_type": kind, "executed": [*prompt.outputs]}

    def _forget(self) -> None:
        """Remove the oldest of too many prompts that have ended."""
        ended = [key for key, each in self._all.items() if each.ended]
        for key in ended[: max(0, len(ended) - MAX_HISTORY)]:
            del self._all[key]


def _said(error: Exception) -> dict[str, Any]:
    """ComfyUI's fields of an error, without paths and tracebacks, which the server's log has."""
    message, kind = problem_of(error).message, type(error).__name__
    if isinstance(error, JobFailed):
        message, kind = str(error), error.kind
    nothing: dict[str, Any] = {"traceback": [], "current_inputs": {}, "current_outputs": {}}
    return {"exception_message": message, "exception_type": kind, **nothing}
