"""The built files are those of the source, and the types of the client those of our OpenAPI."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from studio.server.web import routes

WEB = Path(routes.__file__).parent
NEEDS = "needs Node.js and `npm ci` in studio/server/web; `make test-web` does that"

pytestmark = [
    pytest.mark.web,
    pytest.mark.skipif(
        not os.environ.get("CI") and not (shutil.which("npx") and (WEB / "node_modules").is_dir()), reason=NEEDS
    ),
]


def run(*words: str, cwd: Path = WEB) -> None:
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_built_files_are_those_of_the_source(tmp_path: Path) -> None:
    run("node", "build.mjs", str(tmp_path))
    built = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert built == routes.files(), "run `make web`"


def test_the_types_are_those_of_our_openapi(tmp_path: Path) -> None:
    made = tmp_path / "openapi.ts"
    run("npm", "run", "--silent", "types", "--", "--output", str(made))
    assert made.read_text() == (WEB / "src" / "openapi.ts").read_text(), "run `make web`"
    run("npx", "tsc", "--noEmit")
