"""Prompts: graphs that were accepted, run and remembered, with the messages that ComfyUI's clients wait for.

The queue and the history are in memory, as ComfyUI's are; a client sees only prompts of its own access token.

Try it: ``pytest tests/studio/server/comfy``
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from studio.api import Studio
from studio.engine import Ticket
from studio.engine.events import Event, Preview, Progress, Started
from studio.errors import Busy, Cancelled
from studio.media import Image
from studio.server.comfy.compile import Compiled
from studio.server.comfy.scene import file_name
from studio.server.comfy.sockets import Sockets, preview_frame
from studio.server.comfy.values import Render
from studio.server.errors import problem_of
from studio.server.running import apart, submit

MAX_PENDING = 1000
MAX_HISTORY = 500
_PREVIEWS = 5  # of one render: each costs a decoding of its latents


@dataclass(eq=False)
class Prompt:
    """One accepted graph.

    Attributes:
        number: in the order of acceptance.
        client, sid: the token's name, and the websocket that gets the messages.
        graph: as it was sent.
        state: ``pending``, ``running``, ``success``, ``error`` or ``interrupted``.
        outputs: by output node, in ComfyUI's form.
        messages: ComfyUI's, for the history.
    """

    id: str
    number: int
    client: str
    sid: str
    graph: Mapping[str, Any]
    compiled: Compiled
    state: str = "pending"
    outputs: dict[str, Any] = field(default_factory=dict)
    messages: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    task: asyncio.Task[None] | None = None
    node: str = ""
    pictures: dict[Render, list[Image]] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Whether it is in the history."""
        return self.state in ("success", "error", "interrupted")

    def in_queue(self) -> list[Any]:
        """Its item in ``/queue``."""
        return [self.number, self.id, self.graph, {"client_id": self.sid}, [each.node for each in self.compiled.saved]]

    def in_history(self) -> dict[str, Any]:
        """Its item in ``/history``."""
        good = self.state == "success"
        status = {"status_str": "success" if good else "error", "completed": good,
                  "messages": [[kind, data] for kind, data in self.messages]}  # fmt: skip
        meta = {node: {"node_id": node, "display_node": node, "parent_node": None, "real_node_id": node}
                for node in self.outputs}  # fmt: skip
        return {"prompt": self.in_queue(), "outputs": self.outputs, "status": status, "meta": meta}


class Prompts:
    """The queue and the history. Used in the event loop only."""

    def __init__(self, studio: Studio) -> None:
        self.sockets = Sockets()
        self._studio = studio
        self._numbers = itertools.count()
        self._all: dict[tuple[str, str], Prompt] = {}

    def of(self, client: str, *, ended: bool) -> list[Prompt]:
        """The prompts of a client that have ended, or have not, oldest first."""
        return [each for each in self._all.values() if each.client == client and each.ended is ended]

    def find(self, client: str, id: str) -> Prompt | None:
        """A prompt by its id."""
        return self._all.get((client, id))

    def status(self, client: str) -> dict[str, Any]:
        """ComfyUI's `exec_info`."""
        return {"exec_info": {"queue_remaining": len(self.of(client, ended=False))}}

    def add(self, id: str, client: str, sid: str, graph: Mapping[str, Any], compiled: Compiled) -> Prompt:
        """Accept a graph and run it. Raises Busy if too many are in the queue."""
        if sum(not each.ended for each in self._all.values()) >= MAX_PENDING:
            raise Busy(f"{MAX_PENDING:,} prompts are in the queue")
        prompt = Prompt(id, next(self._numbers), client, sid, graph, compiled)
        self._all[client, id] = prompt
        prompt.task = asyncio.ensure_future(self._run(prompt))
        self.sockets.status(client, self.status(client))
        return prompt

    def interrupt(self, client: str, id: str | None) -> None:
        """Cancel a running prompt: the oldest, if none is named."""
        running = [each for each in self.of(client, ended=False) if each.state == "running"]
        for each in [each for each in running if id in (None, each.id)][:1]:
            self._cancel(each)

    def delete(self, client: str, ids: Sequence[str] | None, *, ended: bool) -> None:
        """Remove prompts from the history, or such as are not running from the queue; all of them without `ids`."""
        for each in self.of(client, ended=ended):
            if (ids is None or each.id in ids) and each.state != "running":
                self._cancel(each)
                del self._all[client, each.id]
        self.sockets.status(client, self.status(client))

    def _cancel(self, prompt: Prompt) -> None:
        if prompt.task is not None:
            prompt.task.cancel()

    def _tell(self, prompt: Prompt, kind: str, *, keep: bool = False, **data: Any) -> None:
        data |= {"prompt_id": prompt.id, "timestamp": int(time.time() * 1000)} if keep else {"prompt_id": prompt.id}
        if keep:
            prompt.messages.append((kind, data))
        self.sockets.publish(prompt.client, prompt.sid, kind, data)

    async def _run(self, prompt: Prompt) -> None:
        """Run the renders one after another, and report what is saved."""
        try:
            await self._render_all(prompt)
            prompt.state = "success"
            self._tell(prompt, "execution_success", keep=True)
        except (asyncio.CancelledError, Cancelled):
            prompt.state = "interrupted"
            where = {"node_id": prompt.node, "node_type": self._kind(prompt), "executed": [*prompt.outputs]}
            self._tell(prompt, "execution_interrupted", keep=True, **where)
        except Exception as error:
            prompt.state = "error"
            self._tell(prompt, "execution_error", keep=True, **self._error(prompt, error))
        finally:
            prompt.pictures.clear()
            self._tell(prompt, "executing", node=None)
            self.sockets.status(prompt.client, self.status(prompt.client))
            self._forget()

    async def _render_all(self, prompt: Prompt) -> None:
        """Save what is there already, then run one render after another, and save what uses it."""
        self._tell(prompt, "execution_start", keep=True)
        self._tell(prompt, "execution_cached", keep=True, nodes=[])
        await self._save(prompt, None)
        for render in prompt.compiled.renders:
            prompt.node = render.node
            prompt.pictures[render] = await self._render(prompt, render)
            await self._save(prompt, render)

    async def _render(self, prompt: Prompt, render: Render) -> list[Image]:
        """Run the requests of a render together. If one fails, the others are cancelled."""
        values = dict(render.values)
        if render.earlier is not None:
            values["image"] = prompt.pictures[render.earlier][0]
        if self.sockets.listens(prompt.client, prompt.sid):
            values["preview_every"] = max(1, values["steps"] // _PREVIEWS)
        tickets = await submit(self._studio, render.choice, {**values, "client": prompt.client}, render.count)
        progress = [(0, 0)] * len(tickets)
        try:
            return [*await asyncio.gather(*(self._follow(prompt, each, i, progress) for i, each in enumerate(tickets)))]
        finally:
            for each in tickets:
                if not each.done:
                    each.cancel()

    async def _follow(self, prompt: Prompt, ticket: Ticket, index: int, progress: list[tuple[int, int]]) -> Image:
        """Report the events of one request until its picture is there."""
        async for event in ticket:
            self._hear(prompt, event, index, progress)
        made = await ticket
        assert isinstance(made, Image)
        return made

    def _hear(self, prompt: Prompt, event: Event, index: int, progress: list[tuple[int, int]]) -> None:
        if isinstance(event, Started):
            if not any(steps for _, steps in progress):
                prompt.state = "running"
                self._tell(prompt, "executing", node=prompt.node, display_node=prompt.node)
            progress[index] = (0, event.steps)
        elif isinstance(event, Progress):
            progress[index] = (event.position, event.steps)
            done, steps = (sum(part) for part in zip(*progress, strict=True))
            self._tell(prompt, "progress", value=done, max=steps, node=prompt.node)
        elif isinstance(event, Preview) and index == 0 and isinstance(event.media, Image):
            self.sockets.preview(prompt.client, prompt.sid, preview_frame(event.media))

    async def _save(self, prompt: Prompt, render: Render | None) -> None:
        """Put the pictures of output nodes into the store, those of a render or those that were loaded."""
        for saved in prompt.compiled.saved:
            if saved.picture.render is not render:
                continue
            prompt.node = saved.node
            self._tell(prompt, "executing", node=saved.node, display_node=saved.node)
            image = saved.picture.image
            images = prompt.pictures[render] if render is not None else [image] if image is not None else []
            for each in images:
                await apart(self._studio.store.put, each)
            files = [{"filename": file_name(each), "subfolder": "", "type": saved.folder} for each in images]
            prompt.outputs[saved.node] = {"images": files}
            self._tell(prompt, "executed", node=saved.node, display_node=saved.node, output=prompt.outputs[saved.node])

    def _error(self, prompt: Prompt, error: Exception) -> dict[str, Any]:
        """ComfyUI's fields of an error, without paths and tracebacks, which the server's log has."""
        return {
            "node_id": prompt.node, "node_type": self._kind(prompt), "executed": [*prompt.outputs],
            "exception_message": problem_of(error).message, "exception_type": type(error).__name__, "traceback": [],
            "current_inputs": {}, "current_outputs": {},
        }  # fmt: skip

    @staticmethod
    def _kind(prompt: Prompt) -> str:
        return str(prompt.graph.get(prompt.node, {}).get("class_type", ""))

    def _forget(self) -> None:
        """Remove the oldest of too many prompts that have ended."""
        ended = [key for key, each in self._all.items() if each.ended]
        for key in ended[: max(0, len(ended) - MAX_HISTORY)]:
            del self._all[key]
