"""MCP over HTTP: the same tools at ``/mcp`` of the server, without paths of the machine."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client

import studio
from tests.studio.server.running_server import RunningServer, running, unfinished, until


def talk(server: RunningServer, conversation: Callable[[Client], Awaitable[None]]) -> None:
    async def both(mode: str) -> None:
        async with Client(f"{server.url}/mcp", mode=mode) as client:
            await conversation(client)

    for mode in ("auto", "legacy"):
        asyncio.run(both(mode))


def test_an_agent_generates_reads_and_asks_about_jobs(server: RunningServer) -> None:
    async def conversation(client: Client) -> None:
        assert "generate" in {each.name for each in (await client.list_tools()).tools}
        said = {"generator": "plain", "inputs": {"prompt": "x"}, "seed": 1}
        made = await client.call_tool("generate", said)
        assert not made.is_error, made
        assert "path" not in made.structured_content
        assert str(server.studio.home) not in made.model_dump_json()
        file = (await client.read_resource(made.structured_content["uri"])).contents[0]
        assert studio.Image.decode(base64.b64decode(file.blob)).sha256 == made.structured_content["id"]
        key = {"id": (await client.call_tool("generate", said | {"background": True})).structured_content["job"]}
        while (found := await client.call_tool("get_job", key)).structured_content["state"] != "done":
            assert not found.is_error
        assert found.structured_content["outputs"] == [made.structured_content["id"]]
        wrong = await client.call_tool("get_artifact", {"id": "0" * 64})
        assert wrong.is_error
        short = await client.call_tool("get_artifact", {"id": made.structured_content["id"][:12]})
        assert short.is_error, "others could guess it"
        assert str(server.studio.home) not in wrong.model_dump_json()

    talk(server, conversation)
    until(lambda: unfinished(server) == 0)


def test_an_agent_sees_the_jobs_of_its_token(guarded: RunningServer) -> None:
    async def both() -> None:
        found: list[dict[str, Any]] = []
        for name in ("ann", "bob"):
            headers = {"Authorization": f"Bearer {guarded.tokens.create(name)}"}
            async with (
                httpx2.AsyncClient(headers=headers) as http,
                Client(streamable_http_client(f"{guarded.url}/mcp", http_client=http)) as client,
            ):
                for each in found:
                    assert (await client.call_tool("get_job", {"id": each["job"]})).is_error
                    assert (await client.call_tool("cancel_job", {"id": each["job"]})).is_error
                said = {"generator": "plain", "inputs": {"prompt": name}, "background": True}
                found.append((await client.call_tool("generate", said)).structured_content)
                listed = (await client.call_tool("list_jobs", {})).structured_content["jobs"]
                assert [each["job"] for each in listed] == [found[-1]["job"]]

    asyncio.run(both())


def test_a_token_is_needed_where_others_can_reach_the_server(guarded: RunningServer) -> None:
    said = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        answer = httpx.post(f"{guarded.url}/mcp", json=said, headers=headers)
        assert answer.status_code == 401


@pytest.mark.parametrize("headers", [{"Origin": "https://evil.example"}, {"Host": "evil.example"}])
def test_pages_of_others_cannot_ask(server: RunningServer, headers: dict[str, str]) -> None:
    answer = httpx.post(f"{server.url}/mcp", json={}, headers=headers)
    assert answer.status_code in (403, 421)


def test_what_is_no_message_is_refused(server: RunningServer) -> None:
    accepts = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
    for body in (b"", b"{", b"[]", b'{"jsonrpc": "2.0"}', json.dumps({"jsonrpc": "2.0", "id": 1}).encode()):
        answer = httpx.post(f"{server.url}/mcp", content=body, headers=accepts)
        assert 400 <= answer.status_code < 500, body


def test_a_failed_job_is_told_without_paths(server: RunningServer) -> None:
    async def conversation(client: Client) -> None:
        said = {"generator": "failing", "inputs": {"prompt": "x"}, "background": True}
        key = {"id": (await client.call_tool("generate", said)).structured_content["job"]}
        while (found := await client.call_tool("get_job", key)).structured_content["state"] != "failed":
            pass
        listed = await client.call_tool("list_jobs", {})
        for each in (found, listed, await client.call_tool("cancel_job", key)):
            assert "/home/someone" not in each.model_dump_json()
            assert "the job failed" in each.model_dump_json()

    talk(server, conversation)


def test_workflows_that_run_for_long_block_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "long.yaml").write_text(
        "name: long\nnodes:\n  a:\n    use: endless\n    inputs: {prompt: x}\noutputs:\n  a: ${a}\n"
    )
    monkeypatch.setattr("studio.workflow.shipped.FOLDER", tmp_path / "flows")
    count = min(32, (os.cpu_count() or 1) + 4)  # asyncio's threads

    async def conversation(server: RunningServer) -> None:
        async with Client(f"{server.url}/mcp", mode="auto") as client:
            said = [{"name": "long", "seed": n} for n in range(count)]
            calls = [asyncio.ensure_future(client.call_tool("run_workflow", each)) for each in said]
            while unfinished(server) < count:
                await asyncio.sleep(0.01)
            assert not (await client.call_tool("list_models", {})).is_error
            server.studio.close()
            await asyncio.gather(*calls, return_exceptions=True)

    with running(tmp_path / "home") as server:
        asyncio.run(conversation(server))
