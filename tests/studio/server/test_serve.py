"""`studio serve` and `studio token` as commands: a process of its own, its file, and its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from studio.cli.main import run
from studio.errors import UsageError
from studio.locks import is_locked
from studio.remote import LOCK
from studio.server.serve import ServeOptions
from tests.studio.server.running_server import until


@contextmanager
def serving(*words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "studio", "serve", "--port", "0", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def refused(*words: str) -> str:
    """What the command says that must not start."""
    command = [sys.executable, "-m", "studio", "serve", *words]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 2, ran.stderr
    return ran.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_a_signal_and_leaves_nothing(
    own_home: Path, number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["token", "create", "laptop"]) == 0
    token = capfd.readouterr().out.strip()
    with serving() as (process, url):
        found = json.loads((own_home / "server.json").read_text())
        assert (found["url"], psutil.Process(found["pid"]).ppid()) == (url, process.pid)  # it is supervised
        assert (own_home / "server.json").stat().st_mode & 0o777 == 0o600
        assert httpx.get(f"{url}/v1/models").status_code == 401
        for each in (token, found["secret"]):
            assert httpx.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {each}"}).status_code == 200
        if number is signal.SIGINT:
            assert "another server uses the data folder" in refused("--port", "0")
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, "")
        assert "Traceback" not in err
    assert not (own_home / "server.json").exists()
    assert not is_locked(own_home / LOCK)


def test_others_are_not_let_in_without_a_token(own_home: Path) -> None:
    assert "studio token create NAME" in refused("--host", "0.0.0.0", "--port", "0")
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.com"):
        with pytest.raises(UsageError, match="needs a token"):
            ServeOptions(host=host).access(own_home, "secret")
    access = ServeOptions(host="0.0.0.0", token="given").access(own_home, "secret")
    assert access.needs_token
    assert access.client("Bearer given") == access.client("Bearer secret") == "local"
    assert access.client("") is None


def test_an_address_that_is_taken_is_named(own_home: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert f"cannot listen on `127.0.0.1`, port {port}" in refused("--port", str(port))
    assert not os.path.exists(own_home / "server.json")


def test_tokens_are_listed_by_name_and_revoked(own_home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["token", "create", "laptop"]) == 0
    assert run(["token", "create", "laptop"]) == 2
    assert run(["token", "create", "../x"]) == 2
    capfd.readouterr()
    assert run(["token", "list", "--json"]) == 0
    assert [each["name"] for each in json.loads(capfd.readouterr().out)] == ["laptop"]
    assert run(["token", "revoke", "laptop"]) == 0
    assert run(["token", "revoke", "laptop"]) == 2
    assert "no token is called `laptop`" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "display", "opened"), [((), ":0", True), (("--no-browser",), ":0", False), ((), "", False)]
)
def test_the_page_is_opened_from_a_terminal_with_a_display(
    own_home: Path, tmp_path: Path, words: tuple[str, ...], display: str, opened: bool
) -> None:
    browser, asked = tmp_path / "browser", tmp_path / "asked"
    browser.write_text(f'#!/bin/sh\necho "$1" > {asked}.part && mv {asked}.part {asked}\n')
    browser.chmod(0o755)
    environment = {**os.environ, "BROWSER": f"{browser} %s", "DISPLAY": display, "WAYLAND_DISPLAY": ""}
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "studio", "serve", "--port", "0", *words]
    with subprocess.Popen(command, env=environment, stdout=theirs, stderr=subprocess.PIPE, text=True) as process:
        os.close(theirs)
        with os.fdopen(ours) as terminal:
            url = terminal.readline().strip()
            assert process.stderr is not None
            assert "serving" in process.stderr.readline()
            assert httpx.get(url).status_code == 200
            if opened:
                until(asked.exists)
            process.send_signal(signal.SIGTERM)
            process.wait(60)
    assert (asked.read_text().strip() if asked.exists() else "") == (url if opened else "")
