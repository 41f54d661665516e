"""Importing is free, and imports run downwards only."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import studio

ROOT = Path(studio.__file__).parent
HEAVY = ("torch", "diffusers", "transformers", "open_clip", "numpy", "PIL", "av", "safetensors", "rich")

# Lower layers first; a module imports only from layers below its own, or from its own.
LAYERS = (
    ("errors", "caching", "units", "versions", "waking"),
    ("temporary", "locks", "files", "home", "cache", "spec", "recipe", "devices"),
    ("weights", "loaders"),
    ("media", "png", "timed_media", "input_messages", "inputs"),
    ("generator", "contract", "extensions", "hookspecs"),
    ("finite",),
    ("plugins", "models", "attention", "diffusion"),
    ("store", "training", "configuration", "destination"),
    ("engine", "labelling", "requests"),
    ("workflow",),
    ("doctor", "engines", "remake", "remote", "scaffold", "methods"),
    ("api", "testing", "evaluation"),
    ("jobs",),
    ("server",),
    ("cli",),
)
RANK = {room: rank for rank, layer in enumerate(LAYERS) for room in layer}


def loaded(code):
    """Which heavy modules a fresh interpreter has loaded after the code."""
    script = f"""
import json, sys
{code}
print(json.dumps(sorted(set({HEAVY!r}) & set(sys.modules))))
"""
    return json.loads(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import studio", set()),
        ("import studio; studio.Generator, studio.Inputs, studio.Image, studio.hookimpl, studio.Video", set()),
        ("import studio.engine, studio.store, studio.plugins, studio.api", set()),
        ("import studio.attention; studio.attention.Backend", set()),
        ("import studio.models; studio.models.is_source('smollm2')", set()),
        ("import studio; studio.Studio(home='x').generators", set()),
        ("import studio; studio.Studio(home='x').router.close()", set()),
    ],
)
def test_nothing_heavy_is_loaded(code, allowed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert set(loaded(code)) <= allowed


def test_a_generator_without_torch_loads_none(tmp_path, sample_plugin):
    code = f"""
import studio
with studio.Studio(home={str(tmp_path)!r}, plugins=[{str(sample_plugin)!r}], device="cpu") as s:
    s.generate("counter", seed=1)
"""
    found = loaded(code)
    assert "torch" not in found
    assert "numpy" not in found


@pytest.mark.parametrize(("old", "name"), [("png", "with_text"), ("timed_media", "Video")])
def test_former_modules_warn_and_give_the_same(old, name):
    home = "studio.media" + (".png" if old == "png" else "")
    code = f"import studio.{old}, {home}; print(studio.{old}.{name} is {home}.{name})"
    ran = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "True\n"
    assert f"DeprecationWarning: `studio.{old}` is `studio.media" in ran.stderr


def test_every_public_name_is_there():
    for name in studio.__all__:
        assert getattr(studio, name) is not None
    assert set(studio.__all__) <= set(dir(studio))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = studio.nonsense


def room_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@cache
def parsed(path):
    return ast.parse(path.read_text())


def imports(path, types=False):
    """Every module that a file imports at run time, wherever the statement is; with `types` also for type checkers."""
    tree = parsed(path)
    only_types = (
        set()
        if types
        else {
            inner
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            for part in node.body
            for inner in ast.walk(part)
        }
    )
    for node in ast.walk(tree):
        if node in only_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def sources():
    return [path for path in ROOT.rglob("*.py") if path.name != "__main__.py" and path != ROOT / "__init__.py"]


def test_imports_run_downwards():
    assert len(sources()) > 200
    wrong = []
    for path in sources():
        room = room_of(path)
        assert room in RANK, f"`{room}` has no place among the layers"
        for name in imports(path):
            parts = name.split(".")
            known = parts[0] == "studio" and len(parts) > 1 and (ROOT / parts[1]).with_suffix("").name in RANK
            if known and RANK[parts[1]] > RANK[room]:
                wrong.append(f"{path} imports {name}, which stands above")
    assert wrong == []


def test_no_plugin_is_imported_even_for_types():
    found = {path: [name for name in imports(path, types=True) if name.startswith("studio_")] for path in sources()}
    assert [path for path, names in found.items() if names] == []


def test_errors_import_nothing_of_studio_even_for_types():
    assert not [name for name in imports(ROOT / "errors.py", types=True) if name.startswith("studio")]


def test_the_stubs_of_methods_declare_those_of_the_built_in_plugins():
    declared = {
        name.id
        for node in ast.walk(ast.parse((ROOT / "methods.pyi").read_text()))
        if isinstance(node, ast.Assign)
        for name in node.targets
        if isinstance(name, ast.Name)
    }
    reports = studio.Studio().plugins.reports
    assert declared == {
        name for each in reports if each.origin.startswith("multimodal-studio: ") for name in each.methods
    }
