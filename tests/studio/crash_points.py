"""A writer that is killed (SIGKILL) before and after each of its system calls, and what the next writer then finds.

`crash_points.py FOLDER KIND` prints, for each point, what had the name after the kill, and what else was in the folder
after the next write there, as a line of JSON. KIND is `file`, `new` (a name nobody has) or `folder`; `-named` behind it
is a file system that has no files without a name.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from studio import files, temporary

CALLS = ("open", "fdopen", "fsync", "link", "replace", "rename", "unlink", "mkdir", "close", "dup")
NAME = "made"


def write(path: Path, text: str, kind: str) -> None:
    if kind == "folder":
        with files.new_folder(path) as folder:
            (folder / "a").write_text(text)
            (folder / "b").write_text(text)
    else:
        files.write_atomically(path, text.encode(), overwrite=kind == "file")


def content(path: Path) -> str:
    if path.is_dir():
        return "/".join(each.read_text() for each in sorted(path.iterdir()))
    return path.read_text() if path.exists() else ""


def kill_at(point: int) -> None:
    """Die before call number `point` / 2, or after it where `point` is odd."""
    count = 0

    def wrapped(real):
        def call(*args, **kwargs):
            nonlocal count
            mine, count = count, count + 1
            if 2 * mine == point:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return real(*args, **kwargs)
            finally:
                if 2 * mine + 1 == point:
                    os.kill(os.getpid(), signal.SIGKILL)

        return call

    for name in CALLS:
        setattr(os, name, wrapped(getattr(os, name)))


def main(folder: Path, kind: str) -> None:
    kind, _, named = kind.partition("-")
    if named:
        del os.O_TMPFILE
    path, point = folder / NAME, 0
    if kind != "new":
        write(path, "old", kind)
    while True:
        child = os.fork()
        if not child:
            kill_at(point)
            write(path, "new", kind)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        found = content(path)
        temporary._swept.clear()  # the next writer is another process
        files.write_atomically(folder / "next", b"")
        others = sorted(set(os.listdir(folder)) - {NAME, "next"})
        print(json.dumps([found, others, len(list(folder.rglob("*")))]))
        if os.waitstatus_to_exitcode(status) == 0:
            return
        if kind == "new":
            path.unlink(missing_ok=True)
        else:
            write(path, "old", kind)
        point += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
