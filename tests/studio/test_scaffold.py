"""A new plugin works and conforms as it is written, whatever it makes; nothing is left of one that is not written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio.errors import StoreError, StudioError, UnknownName, UsageError
from studio.plugins import Plugins
from studio.scaffold import FAMILIES, package_of, write
from studio.testing import check
from tests import forkserver


@pytest.mark.parametrize("stepped", [False, True], ids=["simple", "stepped"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_plugin_conforms(tmp_path: Path, family: str, stepped: bool) -> None:
    folder = write("soft-glow", tmp_path, family=family, stepped=stepped)
    [report] = (plugins := Plugins.discover([folder / "studio_soft_glow"], entry_points=False)).reports
    assert report.status == "ok", report.reason
    generator = plugins.generators["soft-glow"]
    assert generator.output.kind == family
    found = check(generator)
    found.raise_if_failed()
    skipped = {finding.check for finding in found.findings if finding.status == "skipped"}
    assert bool(skipped) is not stepped
    assert sorted(path.name for path in tmp_path.iterdir()) == ["soft-glow"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Soft", "`Soft` is not a valid name for a plugin"),
        ("../up", "is not a valid name"),
        ("", "is not a valid name"),
        ("x" * 51, "is not a valid name"),
        ("diffusion", "the package `studio_diffusion` already exists"),
    ],
)
def test_a_bad_name_is_refused(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        write(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_exists_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("mine", "link"):
        with pytest.raises(UsageError, match="already exists"):
            write(name, tmp_path)
    with pytest.raises(UnknownName, match="no family is called `imge`"):
        write("other", tmp_path, family="imge")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "mine"]


def test_nothing_partial_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, *_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StoreError, match="No space left on device"):
        write("mine", tmp_path)
    assert not list(tmp_path.iterdir())


@given(st.text(max_size=60) | st.from_regex(r"[a-z][a-z0-9_-]{0,49}", fullmatch=True))
def test_any_name_is_refused_or_makes_valid_python(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    parent = tmp_path_factory.mktemp("drawn")
    try:
        folder = write(name, parent, stepped=True)
    except StudioError:
        assert not list(parent.iterdir())
        return
    assert folder.parent == parent
    for path in folder.rglob("*.py"):
        compile(path.read_text(encoding="utf-8"), path.name, "exec")
    assert package_of(name).isidentifier()


def run(folder: Path, *command: str, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def test_from_nothing_to_a_picture(tmp_path: Path) -> None:
    """By its path, as the default suite installs nothing."""

    def studio(*words: str) -> str:
        done = forkserver.run(["-m", "studio", *words], cwd=tmp_path)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    assert studio("plugins", "new", "soft-glow") == "soft-glow\n"
    by_path = ["--plugin", "soft-glow/studio_soft_glow"]
    studio(*by_path, "generate", "soft-glow", "--rings", "5", "--seed", "7", "-o", "first.png")
    assert (tmp_path / "first.png").read_bytes().startswith(b"\x89PNG")
    assert "failed" not in studio(*by_path, "plugins", "check", "soft-glow")


@pytest.mark.slow
def test_from_nothing_to_a_picture_of_an_installed_plugin(tmp_path: Path) -> None:
    """Into a folder of its own, so that the environment stays as it is; the plugin's own tests run too."""
    studio = [sys.executable, "-m", "studio"]
    run(tmp_path, *studio, "plugins", "new", "soft-glow", "--stepped")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", "site"]
    run(tmp_path, *pip, "./soft-glow")
    path = os.pathsep.join(filter(None, [str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]))
    assert "soft-glow\t0.1.0\tok" in run(tmp_path, *studio, "plugins", PYTHONPATH=path)
    run(tmp_path, *studio, "generate", "soft-glow", "--seed", "7", "-o", "first.png", PYTHONPATH=path)
    assert (tmp_path / "first.png").exists()
    run(tmp_path / "soft-glow", sys.executable, "-m", "pytest", "-q", PYTHONPATH=path)
