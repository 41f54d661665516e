"""Accepted prompts whose jobs do not run yet."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import PIL.Image
import pytest

import studio
from studio.errors import Busy
from studio.jobs import Jobs, JobState
from studio.server.comfy import prompts as module
from studio.server.comfy.prompts import Prompts, QueuedPrompt
from tests.studio.server.comfy.conftest import Compile
from tests.studio.server.comfy.graphs import Graph, image_to_image, text_to_image


@pytest.fixture
def jobs(host: studio.Studio) -> Iterator[Jobs]:
    with Jobs(host) as made:  # not started
        yield made
        made.prune()


def accepted(compiled: Compile, id: str, graph: Graph, *, front: bool = False) -> QueuedPrompt:
    return QueuedPrompt(id, "me", "", graph, compiled(graph), front)


def test_an_accepted_prompt_is_a_job_until_it_is_removed_from_the_queue(compiled: Compile, jobs: Jobs) -> None:
    async def go() -> None:
        prompts = Prompts(jobs)
        prompt = await prompts.add(accepted(compiled, "one", text_to_image()))
        [job] = jobs.list(JobState.QUEUED)
        assert (job.client, job.work.seed) == ("me", 7)
        assert prompts.of("me", ended=False) == [prompt]
        assert prompts.of("someone", ended=False) == []
        await prompts.delete("someone", None, ended=False)
        await prompts.interrupt("me", None)  # it does not run
        assert jobs.get(job.id).state is JobState.QUEUED
        await prompts.delete("me", ["one"], ended=False)
        assert jobs.get(job.id).state is JobState.CANCELLED
        assert prompts.find("me", "one") is None

    asyncio.run(go())


def test_a_prompt_at_the_front_runs_first(compiled: Compile, jobs: Jobs) -> None:
    async def go() -> None:
        prompts = Prompts(jobs)
        graph = text_to_image()
        graph["5"]["inputs"]["batch_size"] = 2
        await prompts.add(accepted(compiled, "first", text_to_image(seed=1)))
        await prompts.add(accepted(compiled, "front", graph, front=True))
        waiting = sorted(jobs.list(JobState.QUEUED), key=lambda job: job.order)
        assert [job.work.seed for job in waiting] == [7, 8, 1]
        await prompts.delete("me", None, ended=False)

    asyncio.run(go())


def test_a_waiting_prompt_keeps_no_pictures(compiled: Compile, host: studio.Studio, jobs: Jobs) -> None:
    made = studio.Image(PIL.Image.new("RGB", (64, 64), "red"))
    host.store.put(made)

    async def go() -> None:
        prompts = Prompts(jobs)
        prompt = await prompts.add(accepted(compiled, "one", image_to_image(f"{made.sha256}.png")))
        assert prompt.compiled.renders[0].values == {}
        assert prompt.compiled.saved == ()
        [job] = jobs.list(JobState.QUEUED)
        assert job.work.inputs["image"] == made.ref.model_dump()
        await prompts.delete("me", None, ended=False)

    asyncio.run(go())


def test_a_full_queue_is_busy(compiled: Compile, jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PENDING", 1)

    async def go() -> None:
        prompts = Prompts(jobs)
        await prompts.add(accepted(compiled, "one", text_to_image()))
        with pytest.raises(Busy):
            await prompts.add(accepted(compiled, "two", text_to_image()))
        assert prompts.find("me", "two") is None
        await prompts.delete("me", None, ended=False)

    asyncio.run(go())
