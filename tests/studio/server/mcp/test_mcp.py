"""The MCP server, used by the client of the `mcp` package: in this process, and as a command over its streams."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import sys
from pathlib import Path

import jsonschema
import PIL.Image
import pytest
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters
from mcp.shared.exceptions import MCPError

import studio
from studio.media.label import TRAINED
from studio.server.mcp import server

PROBE = Path(__file__).parents[2] / "cli" / "probe_plugin.py"


@pytest.fixture
def host(sample_plugin):
    with studio.Studio(plugins=[sample_plugin, PROBE], device="cpu") as made:
        yield made


def talk(host, conversation):
    """Run a conversation of a client with a server in this process."""

    async def both():
        agents = server.Agents(host)
        try:
            async with Client(agents.server) as client:
                await conversation(client)
        finally:
            await asyncio.to_thread(agents.close)

    asyncio.run(both())


def text(result):
    return "\n".join(each.text for each in result.content if each.type == "text")


def png(size=(8, 8)):
    buffer = io.BytesIO()
    PIL.Image.radial_gradient("L").resize(size).convert("RGB").save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def test_over_its_streams_with_progress_and_in_spite_of_prints(tmp_path):
    async def conversation():
        arguments = ["-m", "studio", "--home", str(tmp_path), "--device", "cpu", "--plugin", str(PROBE), "mcp"]
        process = StdioServerParameters(command=sys.executable, args=arguments, env=dict(os.environ), cwd=tmp_path)
        seen = []

        async def progress(position, steps, message):
            seen.append((position, steps))

        async with Client(process) as client:
            said = {"generator": "echo", "inputs": {"text": "hello", "loud": True}, "seed": 3}
            assert text(await client.call_tool("generate", said)).startswith("HELLO | 1 plain")
            slow = {"generator": "slow", "inputs": {"steps": 4}}
            assert not (await client.call_tool("generate", slow, progress_callback=progress)).is_error
        assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]

    asyncio.run(conversation())


def test_tools_are_what_generators_declare(host):
    async def conversation(client):
        tools = {each.name: each for each in (await client.list_tools()).tools}
        assert {"generate_image", "generate_video", "generate_text", "generate"} <= tools.keys()
        for each in tools.values():
            jsonschema.Draft202012Validator.check_schema(each.input_schema)
        inputs = tools["generate_image"].input_schema
        assert "data: URL" in inputs["properties"]["image"]["description"]
        jsonschema.validate({"prompt": "x", "steps": 4, "seed": 1, "image": "0123456789"}, inputs)
        for wrong in ({"steps": 4}, {"prompt": "x", "steps": 0}, {"prompt": "x", "seed": -1}, {"prompt": "x", "a": 1}):
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate(wrong, inputs)
        listed = (await client.call_tool("list_generators", {})).structured_content["generators"]
        assert {"name": "noise", "output": "image", "summary": "Random pixels."} in listed
        one = (await client.call_tool("list_generators", {"name": "noise"})).structured_content
        assert one["inputs"]["required"] == ["prompt"]
        assert (await client.call_tool("list_models", {})).structured_content == {"models": []}
        flows = (await client.call_tool("list_workflows", {})).structured_content["workflows"]
        assert "best" in {each["name"] for each in flows}

    talk(host, conversation)


def test_a_picture_comes_with_a_labelled_preview_and_a_link_and_is_an_input(host):
    async def conversation(client):
        made = await client.call_tool("generate", {"generator": "noise", "inputs": {"prompt": "x"}, "seed": 1})
        facts, preview, link = made.content
        found = json.loads(facts.text)
        assert found == made.structured_content
        assert (found["generator"], found["seed"], found["kind"]) == ("noise", 1, "image")
        assert studio.Image.decode(base64.b64decode(preview.data)).label.source == TRAINED
        assert link.uri == found["uri"] == f"studio://artifacts/{found['id']}"
        file = (await client.read_resource(link.uri)).contents[0]
        assert studio.Image.decode(base64.b64decode(file.blob)).sha256 == found["id"]
        for image in (found["id"], found["id"][:8], link.uri, png()):
            turned = await client.call_tool("generate", {"generator": "invert", "inputs": {"image": image}})
            assert not turned.is_error, text(turned)
        again = await client.call_tool("get_artifact", {"id": link.uri})
        assert again.structured_content == found

    talk(host, conversation)


def test_large_pictures_have_small_previews(host):
    async def conversation(client):
        made = await client.call_tool("generate", {"generator": "dot", "inputs": {"prompt": "x", "side": 2048}})
        preview = studio.Image.decode(base64.b64decode(made.content[1].data))
        assert preview.size == (512, 512)

    talk(host, conversation)


@pytest.mark.parametrize(
    ("tool", "given", "reason"),
    [
        ("generate", {"generator": "nosie"}, "did you mean `noise`"),
        ("generate", {"generator": "noise", "inputs": {"prompt": "x", "sied": 8}}, "did you mean `side`"),
        ("generate", {"generator": "noise", "inputs": {"prompt": "x", "side": 9000}}, "side"),
        ("generate", {"generator": "noise", "inputs": {"prompt": "x"}, "seed": -1}, "`seed` is -1"),
        ("generate", {"generator": "noise", "inputs": {"prompt": "x", "destination": "/tmp/x"}}, "destination"),
        ("generate", {"generator": "noise", "inputs": "x"}, "`inputs` must be an object"),
        ("generate", {"generator": "noise", "background": "yes"}, "`background` is 'yes'"),
        ("generate", {"generator": "invert", "inputs": {"image": "/etc/passwd"}}, "not the id of an output"),
        ("generate", {"generator": "invert", "inputs": {"image": "file:///etc/passwd"}}, "not the id of an output"),
        ("generate", {"generator": "invert", "inputs": {"image": 7}}, "must be an id or a data: URL"),
        ("generate", {"generator": "invert", "inputs": {"image": "data:image/png;base64,aGk="}}, "picture"),
        ("generate_image", {"prompt": "x", "model": "/etc"}, "model"),
        ("run_workflow", {"name": "/etc/passwd"}, "no workflow is called `/etc/passwd`"),
        ("run_workflow", {"name": "best", "inputs": {"promt": "x"}}, "promt"),
        ("get_artifact", {"id": "../../etc"}, "not the id of an output"),
        ("get_artifact", {"id": "0123456789"}, "no artifact"),
        ("get_job", {"id": "gone"}, "no job is called `gone`"),
        ("list_models", {"all": True}, "no argument is called `all`"),
    ],
)
def test_what_is_wrong_is_an_answer_with_the_remedy(host, tool, given, reason):
    async def conversation(client):
        answer = await client.call_tool(tool, given)
        assert answer.is_error
        assert reason in text(answer)

    talk(host, conversation)


def test_an_unknown_tool_and_an_unknown_output_are_errors_of_the_protocol(host):
    async def conversation(client):
        with pytest.raises(MCPError, match="no tool is called `generat`"):
            await client.call_tool("generat", {})
        with pytest.raises(MCPError, match="has no artifact"):
            await client.read_resource("studio://artifacts/" + "0" * 64)

    talk(host, conversation)


async def state(client, key, *states):
    """Ask about a job until it is in one of these states."""
    while (found := await client.call_tool("get_job", key)).structured_content["state"] not in states:
        await asyncio.sleep(0.01)
    return found


def test_work_in_the_background_is_a_job(host):
    async def conversation(client):
        slow = {"generator": "slow", "inputs": {"steps": 1000, "pause": 0.01}, "background": True}
        key = {"id": (await client.call_tool("generate", slow)).structured_content["job"]}
        await state(client, key, "running")
        await client.call_tool("cancel_job", key)
        assert (await state(client, key, "cancelled")).structured_content["outputs"] == []
        quick = {"generator": "noise", "inputs": {"prompt": "x"}, "seed": 5, "background": True}
        other = {"id": (await client.call_tool("generate", quick)).structured_content["job"]}
        done = await state(client, other, "done")
        assert [each.type for each in done.content] == ["text", "text", "image", "resource_link"]
        assert done.structured_content["outputs"] == [json.loads(done.content[1].text)["id"]]
        failing = {"generator": "slow", "inputs": {"steps": 3, "fail_seed": 2}, "seed": 2, "background": True}
        third = {"id": (await client.call_tool("generate", failing)).structured_content["job"]}
        assert (await state(client, third, "failed")).is_error
        listed = (await client.call_tool("list_jobs", {})).structured_content["jobs"]
        assert [each["job"] for each in listed] == [third["id"], other["id"], key["id"]]
        wrong = {"generator": "invert", "inputs": {"image": "/etc/passwd"}, "background": True}
        assert (await client.call_tool("generate", wrong)).is_error

    talk(host, conversation)


def test_a_job_is_there_for_the_next_conversation(host):
    found = {}

    async def asking(client):
        quick = {"generator": "noise", "inputs": {"prompt": "x"}, "seed": 6, "background": True}
        found["id"] = (await client.call_tool("generate", quick)).structured_content["job"]

    async def returning(client):
        assert [each["job"] for each in (await client.call_tool("list_jobs", {})).structured_content["jobs"]] == [
            found["id"]
        ]
        assert not (await state(client, found, "done")).is_error

    talk(host, asking)
    talk(host, returning)


def test_a_cancelled_call_cancels_its_request(host):
    async def conversation(client):
        started = asyncio.Event()

        async def progress(*_):
            started.set()

        slow = {"generator": "slow", "inputs": {"steps": 1000, "pause": 0.01}}
        call = asyncio.ensure_future(client.call_tool("generate", slow, progress_callback=progress))
        await started.wait()
        call.cancel()
        while 'outcome="cancelled"' not in host.metrics():
            await asyncio.sleep(0)

    talk(host, conversation)
