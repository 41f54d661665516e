"""Requests that run in a server of the same data folder end as they would here."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import PIL.Image
import pytest

import studio
from studio import remote
from studio.errors import Cancelled, EngineClosed, GeneratorFailed, UsageError
from studio.server.serve import _announced, _only_one
from tests.studio.server.running_server import SECRET, RunningServer, running

PLUGIN = Path(__file__).parent / "server" / "server_plugin.py"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    home = tmp_path_factory.mktemp("remote")
    with running(home) as server, _only_one(home), _announced(home, server.url, SECRET):
        yield server


@pytest.fixture
def there(served: RunningServer) -> Iterator[studio.Studio]:
    with studio.Studio(home=served.studio.home, plugins=[PLUGIN], use_server=True) as host:
        assert isinstance(host.router, remote.RemoteRouter)
        yield host


@pytest.fixture
def here(tmp_path: Path) -> Iterator[studio.Studio]:
    with studio.Studio(home=tmp_path / "own", plugins=[PLUGIN], device="cpu", use_server=True) as host:
        yield host


def wait_until_idle(server: RunningServer) -> None:
    """Wait until the server has no unfinished requests, for at most a minute."""
    for _ in range(600):
        if not any(row for each in server.studio.running() for row in each["requests"]):
            return
        time.sleep(0.1)
    raise AssertionError("requests are still unfinished")


def test_outputs_recipes_and_events_are_those_of_this_process(there: studio.Studio, here: studio.Studio) -> None:
    picture = studio.Image(PIL.Image.new("RGB", (3, 2), "red"))
    for values in ({"prompt": "x", "steps": 3}, {"prompt": "x", "image": picture}):
        both = [host.submit("plain", seed=5, **values) for host in (there, here)]
        made, own = (each.result(60) for each in both)
        assert made.sha256 == own.sha256
        assert made.path.is_relative_to(there.home)
        varies = {"created", "seconds", "spec"}
        assert made.recipe.model_dump(exclude=varies) == own.recipe.model_dump(exclude=varies)
        assert made.recipe.spec.inputs == own.recipe.spec.inputs
        assert [each.type for each in both[0].events()] == [each.type for each in both[1].events()]


def test_the_label_is_what_this_process_says(served: RunningServer, there: studio.Studio) -> None:
    assert there.submit("plain", prompt="x", seed=5).result(60).label is not None
    with studio.Studio(home=served.studio.home, plugins=[PLUGIN], use_server=True, ai_label=False) as host:
        assert host.submit("plain", prompt="x", seed=6).result(60).label is None


def test_a_workflow_and_a_replay_run_there(there: studio.Studio, tmp_path: Path) -> None:
    file = tmp_path / "two.yaml"
    file.write_text(
        "name: two\nnodes:\n  first: {use: plain, inputs: {prompt: x}}\n"
        '  second: {use: plain, inputs: {prompt: y, image: "${first}"}}\noutputs: {made: "${second}"}\n'
    )
    made = there.run(file)
    assert not made.failed
    assert there.replay(str(made.outputs["made"].sha256)).identical


def test_a_failure_is_told_whole(there: studio.Studio) -> None:
    with pytest.raises(GeneratorFailed, match=r"secret\.bin") as caught:
        there.submit("failing", prompt="x").result(60)
    assert caught.value.exit_code == GeneratorFailed.exit_code


def test_cancelling_one_request_leaves_the_other(there: studio.Studio, served: RunningServer) -> None:
    first, second = there.submit_many("endless", 2, prompt="x", seed=1)
    next(event for event in first.events() if event.type == "progress")
    first.cancel()
    with pytest.raises(Cancelled):
        first.result(60)
    assert not second.done
    there.close()
    with pytest.raises(Cancelled):
        second.result(60)
    wait_until_idle(served)


def test_closing_the_connection_cancels(served: RunningServer) -> None:
    spec = {"generator": "endless", "inputs": {"prompt": "x"}, "seed": 1}
    auth = {"Authorization": f"Bearer {SECRET}"}
    body = {"requests": [spec]}
    with httpx.stream("POST", served.url + remote.PATH, json=body, headers=auth, timeout=60) as response:
        lines = response.iter_lines()
        assert json.loads(next(lines))["batch"]
        assert json.loads(next(lines))["event"]["type"] == "queued"
    wait_until_idle(served)


def test_a_server_that_ends_ends_its_requests(tmp_path: Path) -> None:
    with running(tmp_path) as server, _only_one(tmp_path), _announced(tmp_path, server.url, SECRET):
        host = studio.Studio(home=tmp_path, plugins=[PLUGIN], use_server=True)
        ticket = host.submit("endless", prompt="x")
        next(event for event in ticket.events() if event.type == "progress")
        server.studio.close()
        with pytest.raises((EngineClosed, Cancelled)):
            ticket.result(60)
    with pytest.raises(EngineClosed, match="the server did not accept the request"):
        host.submit("plain", prompt="x")
    host.close()


def test_only_the_owner_may_ask(served: RunningServer) -> None:
    token = served.tokens.create("guest")
    try:
        for path in (remote.PATH, f"{remote.PATH}/x/cancel"):
            asked = httpx.post(served.url + path, json={}, headers={"Authorization": f"Bearer {token}"}, timeout=60)
            assert (asked.status_code, asked.json()["error"]["code"]) == (403, "not_the_owner")
    finally:
        served.tokens.revoke("guest")


def test_without_a_server_or_with_another_version_requests_run_here(
    here: studio.Studio, served: RunningServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert here.submit("plain", prompt="x", seed=1).result(60).recipe.notices == ()
    assert not isinstance(here.router, remote.RemoteRouter)
    (tmp_path / "old").mkdir()
    with _only_one(tmp_path / "old"), _announced(tmp_path / "old", served.url, SECRET):
        monkeypatch.setattr(remote, "libraries", lambda: {"studio": "99"})
        with studio.Studio(home=tmp_path / "old", plugins=[PLUGIN], device="cpu", use_server=True) as host:
            made = host.submit("plain", prompt="x", seed=1).result(60)
    assert any("not 99" in each for each in made.recipe.notices)


def test_the_address_of_a_killed_server_is_not_used(served: RunningServer, tmp_path: Path) -> None:
    here = studio.Studio(home=tmp_path, plugins=[PLUGIN], device="cpu", use_server=True)
    with _announced(tmp_path, served.url, SECRET), here as host:  # another program may listen there by now
        assert not isinstance(host.router, remote.RemoteRouter)


def test_a_server_that_does_not_answer_is_noticed(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    here = studio.Studio(home=tmp_path, plugins=[PLUGIN], device="cpu", use_server=True)
    with _only_one(tmp_path), _announced(tmp_path, url, SECRET), here as host:
        made = host.submit("plain", prompt="x", seed=1).result(60)
    assert any("does not answer" in each for each in made.recipe.notices)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"url": "file:///etc/passwd", "secret": "x"}', '{"url": 3}'])
def test_a_damaged_address_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / remote.FILE).write_text(text)
    assert remote.ServerAddress.of(tmp_path) is None


def test_requests_that_store_nothing_run_here(there: studio.Studio) -> None:
    made = there.submit("plain", prompt="x", stored=False, seed=3)
    assert made.result(60).path is None


COMMAND = """
import sys
from studio.cli import main
try:
    main()
finally:
    print("torch" in sys.modules, file=sys.stderr)
"""


def test_the_command_line_uses_it_without_torch(served: RunningServer, tmp_path: Path) -> None:
    environment = {**os.environ, "STUDIO_HOME": str(served.studio.home)}

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", COMMAND, *arguments], env=environment, cwd=tmp_path,
                              capture_output=True, text=True, timeout=300, check=False)  # fmt: skip

    made = command("generate", "template", "Hi {name}", "-o", "there.txt", "--seed", "1", "--quiet")
    assert (made.returncode, made.stdout, made.stderr) == (0, "there.txt\n", "False\n"), made
    assert (tmp_path / "there.txt").exists()


def test_what_the_server_refuses_is_an_error_of_the_command(there: studio.Studio) -> None:
    bad = there.requests.of_values("plain", {"prompt": "x", "seed": 1})
    gone = type(bad)(
        bad.spec.model_copy(update={"generator": "gone"}), bad.generator, bad.inputs, bad.plugin, bad.weights
    )
    with pytest.raises(UsageError, match="gone"):
        there.router.submit_many([gone])
