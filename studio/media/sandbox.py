"""Decoding untrusted files in a separate, sandboxed process with limited memory and time.

The process gets the bytes through a pipe and sends pieces back. Its memory, CPU time and elapsed time are limited, and
after loading its libraries it can open no file and no socket. It loads neither torch nor plugins. However it ends,
the caller gets the pieces or a MediaError.

Try it: ``run("demuxed", Path("a.mp4").read_bytes(), "the video")``
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
from collections import defaultdict
from pathlib import Path
from typing import IO, Any

from studio.errors import MediaError
from studio.media.base import MAX_DECODED_BYTES

MEMORY = 1 << 30  # bytes in addition to the file and the libraries
CPU_S = 60
TIME_S = 240  # on a busy machine the process may get only a quarter of a core
_KEPT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL", "SYSTEMROOT")
_START = "import sys; sys.path[:] = sys.argv[2:]; from studio.media.sandbox import serve; serve(sys.argv[1])"
_HEAD = struct.Struct("<BI")
_PIECES = ("frames", "file")
_END = 255


def run(task: str, data: bytes, noun: str) -> tuple[dict[str, Any], dict[str, bytearray]]:
    """Run a task on the bytes: `decode` or `demuxed` of `clips`, `sound`, which is `sounds.decode`, `picture`, which is
    `pictures.decode`, or `bare` of `share`. Return its result, and the pieces that it put, joined by name.

    Raises the task's MediaError, or one if it exceeded the limits of memory or time.
    """
    home = Path(__file__).resolve().parents[2]  # may be missing in sys.path for an editable install
    paths = [*(os.path.abspath(path) for path in sys.path), str(home)]
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
    environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _START, task, *paths],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, cwd="/",
    )  # fmt: skip
    alarm = threading.Timer(TIME_S, process.kill)
    alarm.daemon = True
    alarm.start()
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with process.stdin:
                process.stdin.write(data)
        except BrokenPipeError:
            pass  # it ended early; its output, if any, is read below
        return _received(process.stdout, noun)
    finally:
        alarm.cancel()
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _received(pipe: IO[bytes], noun: str) -> tuple[dict[str, Any], dict[str, bytearray]]:
    pieces: defaultdict[str, bytearray] = defaultdict(bytearray)
    while True:
        head = pipe.read(_HEAD.size)
        if len(head) < _HEAD.size:
            raise MediaError(f"{noun} is damaged, or needs more memory or time to decode than allowed",
                             hint="save it with another program, smaller or shorter")  # fmt: skip
        name, length = _HEAD.unpack(head)
        body = pipe.read(length)
        if name == _END:
            found: dict[str, Any] = json.loads(body)
            if "error" in found:
                raise MediaError(found["error"], hint=found["hint"])
            return found, pieces
        pieces[_PIECES[name]] += body
        if len(pieces["frames"]) > MAX_DECODED_BYTES:
            raise MediaError(f"{noun} has more than {MAX_DECODED_BYTES >> 20} MiB when decoded",
                             hint="make it smaller or shorter")  # fmt: skip


def serve(task: str) -> None:
    """The main function of the process: read the input, run the task, send the pieces and the result."""
    output = os.fdopen(os.dup(1), "wb", buffering=0)
    data = sys.stdin.buffer.read()
    _load(task, data)
    _limit(len(data))

    def send(number: int, body: bytes | memoryview) -> None:
        view = memoryview(_HEAD.pack(number, len(body)) + body)
        while view:
            view = view[output.write(view) or 0 :]

    from studio.media import clips, pictures, share, sounds

    functions = {
        "decode": clips.decode, "demuxed": clips.demuxed, "sound": sounds.decode, "picture": pictures.decode,
        "bare": share.bare,
    }  # fmt: skip
    try:
        found = functions[task](data, lambda name, body: send(_PIECES.index(name), body))
    except MediaError as error:
        found = {"error": error.message, "hint": error.hint}
    send(_END, json.dumps(found).encode())


def _load(task: str, data: bytes) -> None:
    """Import everything that decoding needs: after the limits are set no file can be opened, not even modules."""
    import importlib
    import pkgutil

    from studio.media import animation

    names = ["numpy", "studio.media.clips", "studio.media.sounds", "studio.media.share"]
    if task == "picture" or animation.is_picture(data):
        import PIL.Image

        PIL.Image.init()
        names += ["PIL.ImageCms", "PIL.ImageOps", "PIL.ImageSequence"]
    else:
        import av

        found = (each.name for each in pkgutil.walk_packages(av.__path__, "av."))
        names += [name for name in found if not name.endswith(("__main__", "datasets"))]
    for name in names:
        importlib.import_module(name)


def _limit(size: int) -> None:
    """Set limits: no new file or socket, and the memory and CPU time for a file of that size."""
    import resource

    limits = [
        (resource.RLIMIT_CPU, CPU_S),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 0),
    ]
    if sys.platform == "linux":  # other systems do not enforce a limit on the address space
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        limits.append((resource.RLIMIT_AS, used + 2 * size + MEMORY))
    for what, most in limits:
        resource.setrlimit(what, (most, most))
