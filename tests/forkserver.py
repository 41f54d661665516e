"""A fork server: Python processes for tests that begin with torch, diffusers and transformers imported.

A process that imports them needs seconds, and most tests of a process need only that it is one: with its own memory,
files, environment and exit code, and with nobody to clean up after it when it is killed. Tests of what a fresh
interpreter does (imports, equal bytes in another process, installed scripts) start one by `subprocess`.

`run` and `start` speak to this file run as a program, which imports the libraries, then forks for each request. The
child sets up what an interpreter has (arguments, environment, working folder, standard streams) and runs the program.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import IO, Any, NoReturn

IMPORTED = (
    "torch._dynamo",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.unets.unet_2d_condition",
    "transformers.models.clip",
    "open_clip",
    "studio.api",
    "studio.attention.backends",
    "studio.cli.lib.making",
    "studio.store.replay",
    "studio.workflow",
    "studio_basics.grid",
    "studio_clip.search",
    "studio_dcgan.latents",
    "studio_diffusion.ddpm",
    "studio_diffusion.image",
    "studio_gpt.text",
    "studio_video.video",
)
MAX_MESSAGE = 1 << 17  # bytes of a request, which has the environment


class Process:
    """A forked process, used as `subprocess.Popen` is."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self.pid = pid
        self._server = server

    @property
    def returncode(self) -> int | None:
        """The exit code, or minus the signal's number; None if it was still alive at the last look."""
        return self._server.ended.get(self.pid)

    def poll(self) -> int | None:
        self._server.listen(block=False)
        return self.returncode

    def wait(self) -> int:
        while (code := self.returncode) is None:
            self._server.listen(block=True)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """The client's side. One thread may use it at a time."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, __file__, str(theirs.fileno())]
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()
        self._pids: list[int] = []
        self.ended: dict[int, int] = {}

    def start(
        self,
        arguments: Sequence[str],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: IO[Any] | int = subprocess.DEVNULL,
        stdout: IO[Any] | int | None = None,
        stderr: IO[Any] | int | None = None,
    ) -> Process:
        """Run `python *arguments`: `-c CODE`, `-m MODULE` or a file, and what it is given."""
        null = os.open(os.devnull, os.O_RDWR)
        given = [stdin, 1 if stdout is None else stdout, 2 if stderr is None else stderr]
        streams = [each if isinstance(each, int) else each.fileno() for each in given]
        streams = [null if each == subprocess.DEVNULL else each for each in streams]
        request = {"arguments": list(arguments), "cwd": str(cwd or Path.cwd()), "env": dict(env or os.environ)}
        try:
            socket.send_fds(self._socket, [json.dumps(request).encode()], streams)
        finally:
            os.close(null)
        while not self._pids:
            self.listen(block=True)
        return Process(self, self._pids.pop())

    def run(self, arguments: Sequence[str], *, input: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a process to its end; what it printed is captured."""
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            given.write(input.encode())
            given.seek(0)
            code = self.start(arguments, stdin=given, stdout=out, stderr=err, **options).wait()
            for each in (out, err):
                each.seek(0)
            return subprocess.CompletedProcess([*arguments], code, out.read().decode(), err.read().decode())

    def listen(self, *, block: bool) -> None:
        """Take the server's messages: processes that were started, and that ended."""
        self._socket.setblocking(block)
        with suppress(BlockingIOError):
            data = self._socket.recv(MAX_MESSAGE)
            assert data, "the fork server ended"
            message = json.loads(data)
            if "started" in message:
                self._pids.append(message["started"])
            else:
                self.ended[message["ended"]] = message["code"]

    def close(self) -> None:
        self._socket.close()
        self._process.wait()


@cache
def server() -> ForkServer:
    """The server of this process, started when it is first needed."""
    made = ForkServer()
    atexit.register(made.close)
    return made


def start(arguments: Sequence[str], **options: Any) -> Process:
    """`ForkServer.start` of this process's server."""
    return server().start(arguments, **options)


def run(arguments: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """`ForkServer.run` of this process's server."""
    return server().run(arguments, **options)


def import_libraries() -> None:
    """What most commands import: libraries, and Studio's modules with the plugins'."""
    from studio.devices import torch_setup

    torch_setup.prepare()
    for name in IMPORTED:
        import_module(name)
    gc.freeze()  # else each child's garbage collector would touch, and so copy, every object


def serve(requests: socket.socket) -> dict[str, Any] | None:
    """Fork for each request until the client is gone. Returns the request in a child, None in the server."""
    ends, wake = os.pipe()
    for each in (ends, wake):
        os.set_blocking(each, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        selector.register(ends, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj == ends:
                    os.read(ends, 1 << 10)
                    report_ended(requests)
                    continue
                data, streams, _, _ = socket.recv_fds(requests, MAX_MESSAGE, 3)
                if not data:
                    return None
                pid = os.fork()
                if not pid:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    for number, stream in enumerate(streams):
                        os.dup2(stream, number)
                    for each in (*streams, ends, wake):
                        os.close(each)
                    return json.loads(data)  # type: ignore[no-any-return]
                for each in streams:
                    os.close(each)
                requests.send(json.dumps({"started": pid}).encode())


def report_ended(requests: socket.socket) -> None:
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
            code = os.waitstatus_to_exitcode(ended[1])
            requests.send(json.dumps({"ended": ended[0], "code": code}).encode())


def interpret(request: dict[str, Any]) -> None:
    """Be the interpreter that was asked for."""
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        direct = os.isatty(number) or number == 2
        errors = "backslashreplace" if number == 2 else "strict"
        stream = open(  # noqa: SIM115
            number, "w" if number else "r", 1 if direct else -1, encoding="utf-8", errors=errors, closefd=False
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    what, *rest = request["arguments"]
    sys.modules["__main__"] = main = ModuleType("__main__")
    if what == "-c":
        sys.argv, sys.path = ["-c", *rest[1:]], ["", *sys.path]
        exec(compile(rest[0], "<string>", "exec"), vars(main))
    elif what == "-m":
        sys.argv, sys.path = rest, [os.getcwd(), *sys.path]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [what, *rest]
        runpy.run_path(what, run_name="__main__")


def end(request: dict[str, Any]) -> NoReturn:
    """Run it, and end as an interpreter does, but without freeing each object of the libraries."""
    code: object = 0
    try:
        interpret(request)
    except SystemExit as error:
        code = error.code
    except BaseException as error:
        traceback.print_exc()
        code = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]  (waits for threads, as multiprocessing does)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code or 0)


if __name__ == "__main__":
    sys.path.pop(0)  # this folder
    import_libraries()
    connection = socket.socket(fileno=int(sys.argv[1]))
    given = serve(connection)
    connection.close()
    if given is not None:
        end(given)
