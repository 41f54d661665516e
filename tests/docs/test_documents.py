"""Everything printed is run: each ```python and ```console block of README.md and docs/*.md.

The blocks of one document share a folder and run in order. In a console block a line starting with `$ ` is a command;
the lines under it, if any, must be its output, where `…` stands for anything. A block after
`<!-- not run: reason -->` is passed over; only what builds an environment, trains or fetches may be.

The first command and the first Python block of README.md run as a reader runs them, and so does each command that needs
a shell. All others are processes of their own too, from the fork server.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import forkserver

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
QUICK = ("README.md", "CONTRIBUTING.md", "plugins.md")  # `make test` runs these, and `make test-docs` all
BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+?) -->\n+)?```(?P<language>python|console)\n(?P<text>.*?)^```$", re.M | re.S
)
MAY_STAY_UNRUN = re.compile(r"\b(make|pip|train|python -m|models pull (smollm2|--convert pypi))\b|git clone")


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    reason: str | None  # why it is not run


def blocks(document: Path) -> Iterator[Block]:
    for found in BLOCK.finditer(document.read_text(encoding="utf-8")):
        yield Block(found["language"], found["text"], found["reason"])


def commands(text: str) -> Iterator[tuple[str, str]]:
    """Each command of a console block with the output printed under it."""
    for part in re.split(r"^\$ ", text, flags=re.M)[1:]:
        command, _, output = part.partition("\n")
        yield command, output.strip()


def matches(printed: str, output: str) -> bool:
    pattern = ".*".join(re.escape(piece) for piece in printed.split("…"))
    return re.fullmatch(pattern, output.strip(), flags=re.S) is not None


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    bin_folder = Path(sys.executable).parent
    return {
        **os.environ,
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "STUDIO_HOME": str(tmp_path / "home"),
        "COLUMNS": "100",
    }


class Reader:
    """Runs what is printed, in one folder."""

    def __init__(self, folder: Path, environment: dict[str, str], *, fresh: bool) -> None:
        self._folder, self._environment = folder, environment
        self._fresh = {"python", "console"} if fresh else set()

    def run(self, language: str, text: str) -> str:
        arguments = ["-c", text] if language == "python" else without_shell(text)
        if arguments is None or language in self._fresh:
            self._fresh.discard(language)
            command = [sys.executable, "-c", text] if language == "python" else ["bash", "-euo", "pipefail", "-c", text]
            done = subprocess.run(
                command, cwd=self._folder, env=self._environment, capture_output=True, text=True, check=False
            )
        else:
            done = forkserver.run(arguments, cwd=self._folder, env=self._environment)
        assert done.returncode == 0, f"{text}\nexit {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout


def without_shell(command: str) -> list[str] | None:
    """Python's arguments for a command of `studio` in which a shell would expand and redirect nothing, else None."""
    words = shlex.split(command)
    return ["-m", *words] if words[0] == "studio" and not re.search(r"[|&;<>(){}\[\]$`\\*?~#!\n]", command) else None


@pytest.mark.parametrize(
    "document",
    [pytest.param(each, marks=[] if each.name in QUICK else [pytest.mark.slow]) for each in DOCUMENTS],
    ids=lambda path: path.name,
)
def test_what_is_printed_runs(document: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    for name in ("examples", "docs"):
        (folder / name).symlink_to(ROOT / name)
    reader = Reader(folder, environment, fresh=document.name == "README.md")
    for block in blocks(document):
        if block.reason:
            continue
        if block.language == "python":
            reader.run("python", block.text)
            continue
        for command, printed in commands(block.text):
            output = reader.run("console", command)
            assert not printed or matches(printed, output), f"$ {command}\nprinted: {printed}\nin fact: {output}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_only_what_builds_or_trains_stays_unrun(document: Path) -> None:
    for block in blocks(document):
        assert block.reason is None or MAY_STAY_UNRUN.search(block.text), block.text


def test_readme_shows_the_example_plugin_as_it_is() -> None:
    example = (ROOT / "examples" / "invert.py").read_text(encoding="utf-8")
    assert f"```python\n{example}```" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_what_docstrings_say_to_run_is_there() -> None:
    named = re.compile(r"\b(?:tests|benchmarks|pipelines|examples)/[\w/.-]+\.(?:py|yaml)\b")
    sources = [path for room in ("studio", "plugins", "benchmarks") for path in (ROOT / room).rglob("*.py")]
    missing = {f"{path}: {each}" for path in sources for each in named.findall(path.read_text("utf-8"))
               if not (ROOT / each).exists()}  # fmt: skip
    assert len(sources) > 100
    assert not missing


def test_the_guide_shows_the_example_of_a_command_as_it_is() -> None:
    example = (ROOT / "examples" / "palette.py").read_text(encoding="utf-8")
    assert f"```python\n{example}```" in (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
