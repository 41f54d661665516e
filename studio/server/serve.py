"""Running the server: the socket, ``server.json`` in the data folder, and a clean end.

``server.json`` tells the user's own programs where the server is, and has a secret that they can use as a token; only
the user can read it. It is removed when the server ends; a lock shows whether it runs.

Try it: ``studio serve --port 0``
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from studio.api import Studio
from studio.errors import StoreError, UsageError
from studio.files import make_folder, write_atomically
from studio.jobs import Jobs
from studio.jobs.supervisor import Supervisor
from studio.locks import TRIES, try_lock
from studio.remote import FILE, LOCK
from studio.server.app import create_app
from studio.server.limits import ImpatientProtocol
from studio.server.security import LOOPBACK, Access
from studio.server.tokens import AccessTokens, hash_of

PORT = 7860  # that of Stable Diffusion WebUI, which its clients try first
MOST_CONNECTIONS = 1000
MOST_MESSAGE = 64 << 10  # bytes of a client's websocket message
KEEP_ALIVE_S = 5
PATIENCE_S = 5  # for responses in progress, when the server ends
_WILDCARDS = ("0.0.0.0", "::", "")
_BACKLOG = 1024
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class ServeOptions:
    """How to serve: the address, a token besides those of the data folder, and names and origins to accept."""

    host: str = "127.0.0.1"
    port: int = PORT
    token: str = ""
    hosts: Sequence[str] = ()
    origins: Sequence[str] = ()

    def access(self, home: Path, secret: str) -> Access:
        """Who may ask. Raises UsageError for an address that others can reach while there is no token."""
        tokens = AccessTokens(home)
        exposed = self.host.strip("[]") not in LOOPBACK
        if exposed and not self.token and not tokens.all():
            hint = "run `studio token create NAME` first, or set STUDIO_TOKEN"
            raise UsageError(f"`--host {self.host}` lets others reach the server, which then needs a token", hint=hint)
        named = frozenset(each.lower() for each in (*self.hosts, self.host.strip("[]")) if each not in _WILDCARDS)
        given = hash_of(self.token) if self.token else ""
        everywhere = self.host in _WILDCARDS
        return Access(tokens, secret, given, named, frozenset(self.origins), any_address=everywhere, exposed=exposed)


def serve(
    studio: Studio,
    options: ServeOptions,
    ready: Callable[[str], None] = lambda _: None,
    supervisor: Supervisor | None = None,
) -> None:
    """Serve, and run the data folder's jobs, until Ctrl-C or SIGTERM. `ready` is called with the URL once connections
    are accepted; `supervisor` looks after the process (see `studio.jobs.supervisor`).

    Raises UsageError if the address cannot be used, or another server uses the data folder; StoreError.
    """
    secret = secrets.token_urlsafe(32)
    access = options.access(studio.home, secret)
    with _only_one(studio.home), _bound(options) as listener, Jobs(studio) as jobs:
        jobs.start(supervisor)
        url = _url(options.host, listener.getsockname()[1])
        server = _Server(configuration(create_app(jobs, access)))
        with _announced(studio.home, url, secret):
            asyncio.run(_run(server, listener, lambda: ready(url)))


def configuration(app: ASGIApp) -> uvicorn.Config:
    """How uvicorn runs the application. It tells nothing about itself, and logs no requests, damaged ones neither."""
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    return uvicorn.Config(
        app,
        http=ImpatientProtocol,
        ws="websockets-sansio",
        ws_max_size=MOST_MESSAGE,
        ws_per_message_deflate=False,
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=PATIENCE_S,
    )


class _Server(uvicorn.Server):
    """uvicorn's server, which ends at SIGINT and SIGTERM without raising them again, so that what is left is closed."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """While the server runs, both signals end it; a second Ctrl-C does not wait for responses."""
        loop = asyncio.get_running_loop()
        for each in _SIGNALS:
            loop.add_signal_handler(each, self.handle_exit, each, None)
        try:
            yield
        finally:
            for each in _SIGNALS:
                loop.remove_signal_handler(each)


async def _run(server: uvicorn.Server, listener: socket.socket, ready: Callable[[], None]) -> None:
    running = asyncio.ensure_future(server.serve(sockets=[listener]))
    while not server.started and not running.done():
        await asyncio.sleep(0.01)
    if server.started:
        ready()
    await running


@contextmanager
def _bound(options: ServeOptions) -> Iterator[socket.socket]:
    """A listening socket. Raises UsageError if the address is taken or is not this machine's."""
    host = options.host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, options.port))
            listener.listen(_BACKLOG)
        except OSError as error:
            message = f"cannot listen on `{options.host}`, port {options.port}: {error.strerror or error}"
            raise UsageError(message, hint="choose another with `--port`; 0 takes a free one") from None
        yield listener
    finally:
        listener.close()


def _url(host: str, port: int) -> str:
    name = "127.0.0.1" if host in _WILDCARDS else host.strip("[]")
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


@contextmanager
def _only_one(home: Path) -> Iterator[None]:
    """Hold the lock of the data folder's server. Raises UsageError if another process has it."""
    make_folder(home)
    try:
        descriptor = os.open(home / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StoreError(f"cannot open `{home / LOCK}`: {error.strerror}") from error
    try:
        if not try_lock(descriptor, without=True, tries=TRIES):
            message = f"another server uses the data folder `{home}`"
            raise UsageError(message, hint="stop it, or choose another `--home`")
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _announced(home: Path, url: str, secret: str) -> Iterator[None]:
    """Write ``server.json``, and remove it at the end."""
    path = home / FILE
    text = json.dumps({"url": url, "pid": os.getpid(), "secret": secret}, indent=1) + "\n"
    write_atomically(path, text.encode(), private=True)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
