"""A real server for tests: uvicorn in a thread, on a free port of 127.0.0.1."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
import uvicorn

import studio
from studio.jobs import Jobs
from studio.server.app import create_app
from studio.server.limits import RequestLimits
from studio.server.security import Access
from studio.server.serve import configuration
from studio.server.tokens import AccessTokens

PLUGIN = Path(__file__).parent / "server_plugin.py"
SECRET = "the-secret-of-the-tests"
# Bodies are as large and may take as long as these say, so that tests need neither time nor memory.
LIMITS = RequestLimits(body_bytes=4 << 20, body_s=0.5, prompt=20_000)


@dataclass(frozen=True)
class RunningServer:
    studio: studio.Studio
    jobs: Jobs
    port: int
    tokens: AccessTokens

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def running(
    home: Path, *, exposed: bool = False, limits: RequestLimits = LIMITS, plugin: Path = PLUGIN
) -> Iterator[RunningServer]:
    host = studio.Studio(home=home, device="cpu", plugins=[plugin])
    access = Access(AccessTokens(home), SECRET, exposed=exposed)
    jobs = Jobs(host)
    server = uvicorn.Server(configuration(create_app(jobs, access, limits)))
    with host, jobs, socket.create_server(("127.0.0.1", 0)) as listener:
        jobs.start()
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.005)
        try:
            yield RunningServer(host, jobs, listener.getsockname()[1], access.tokens)
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


def png(mode: str, size: tuple[int, int], colour: object) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new(mode, size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def unfinished(server: RunningServer) -> int:
    return int(server.studio.metrics().partition("\nstudio_requests_unfinished ")[2].partition("\n")[0])
