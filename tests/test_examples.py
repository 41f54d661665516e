"""The examples are complete: by their path in the default suite, installed as distributions in a slow test."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from studio.plugins import Plugins
from studio.testing import check

EXAMPLES = sorted(path.parent for path in (Path(__file__).parents[1] / "examples").glob("*/pyproject.toml"))
SMALL = {"pixel-pipeline": {"steps": 2, "eta": 1.0}, "reaction": {"size": 32, "steps": 4}}


def package(example: Path) -> Path:
    project = tomllib.loads((example / "pyproject.toml").read_text(encoding="utf-8"))
    return example / project["project"]["entry-points"]["studio.plugins"][example.name]


def test_there_are_three() -> None:
    assert [example.name for example in EXAMPLES] == ["contact-sheet", "pixel-pipeline", "reaction"]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_conforms(example: Path) -> None:
    plugins = Plugins.discover([package(example)], entry_points=False)
    assert [report.status for report in plugins.reports] == ["ok"]
    check(plugins.generators[example.name], SMALL.get(example.name)).raise_if_failed()


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_its_own_tests_pass(example: Path) -> None:
    path = os.pathsep.join(filter(None, [str(example), os.environ.get("PYTHONPATH", "")]))
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(example), str(example)],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.slow
def test_they_install_beside_each_other(tmp_path: Path) -> None:
    import shutil

    for example in EXAMPLES:  # copied, as a build writes beside the source
        shutil.copytree(example, tmp_path / "source" / example.name)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target"]
    sources = [str(tmp_path / "source" / example.name) for example in EXAMPLES]
    subprocess.run([*pip, str(tmp_path / "site"), *sources], check=True, timeout=500)
    path = os.pathsep.join(filter(None, [str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]))

    def studio(*words: str) -> str:
        ran = subprocess.run(
            [sys.executable, "-m", "studio", *words], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    listed = studio("plugins")
    for example in EXAMPLES:
        assert f"{example.name}\t0.1.0\tok\t{example.name}" in listed
    studio("generate", "reaction", "--size", "32", "--steps", "3", "--seed", "1", "-o", "a.png")
    studio("generate", "pixel-pipeline", "--steps", "2", "--seed", "1", "-o", "b.png")
    studio("generate", "contact-sheet", "--images", "a.png", "--images", "b.png", "-o", "sheet.png")
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
