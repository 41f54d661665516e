"""The host names no generator of a built-in plugin, so that these use no other door than everybody's."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import studio
from studio import media
from studio.plugins import OWN, Plugins

ROOT = Path(studio.__file__).parent
KINDS = {each.kind for each in (media.Text, media.Image, media.Video, media.Audio, media.Embedding)}
TAKE_A_GENERATOR = ("submit", "submit_many", "stream", "generate", "generator", "add", "Request", "GeneratorCommand")

# Words that are names of generators too, and why they stand there.
ALLOWED = {
    ("attention/spacetime.py", "grid"): "a part of a bias of patches in space and time",
    ("attention/spec.py", "grid"): "the same, as `--bias` spells it",
    ("diffusion/schedulers.py", "ddpm"): "the sampler, a scheduler of diffusers",
    ("diffusion/samplers.py", "ddpm"): "the sampler of Ho et al. 2020",
    ("loaders/chat_template.py", "template"): "the template of a chat",
    ("loaders/chat_worker.py", "template"): "the same",
    ("recipe.py", "ddpm"): "the sampler, whose name other programs write as DDPM",
    ("server/comfy/samplers.py", "ddpm"): "the sampler, by ComfyUI's name",
    ("workflow/resolve.py", "template"): "what an error is about: an expression of a workflow",
    ("workflow/expressions.py", "template"): "the same",
}


def built_in() -> set[str]:
    plugins = Plugins.discover()
    return {name for report in plugins.reports if report.origin.startswith(f"{OWN}: ") for name in report.generators}


def named(path: Path, names: set[str]) -> Iterator[str]:
    """The quoted names in a file, docstrings left out. A kind of media counts only where a generator is meant."""
    tree = ast.parse(path.read_text("utf-8"))
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    meant = set()
    for call in ast.walk(tree):
        if isinstance(call, ast.Call):
            function = getattr(call.func, "attr", getattr(call.func, "id", ""))
            meant |= {id(each) for each in call.args if function in TAKE_A_GENERATOR}
            meant |= {id(each.value) for each in call.keywords if each.arg == "generator"}
        elif isinstance(call, ast.Assign) and any("generator" in ast.unparse(each).lower() for each in call.targets):
            meant.add(id(call.value))
    for node in ast.walk(tree):
        quoted = isinstance(node, ast.Constant) and id(node) not in prose and node.value in names
        if quoted and (node.value not in KINDS or id(node) in meant):
            yield node.value


def test_the_host_names_no_generator() -> None:
    names = built_in()
    assert {*KINDS & names, "grid"} < names, "the built-in plugins are there"
    found = {
        (path.relative_to(ROOT).as_posix(), name) for path in sorted(ROOT.rglob("*.py")) for name in named(path, names)
    }
    assert found == set(ALLOWED)


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ('host.submit("text", prompt="x")', ["text"]),
        ('made = GeneratorCommand("x", generator="video")', ["video"]),
        ('GENERATOR = "text"', ["text"]),
        ('f(["clip-rank"])', ["clip-rank"]),
        ('kind == "text"', []),
        ('"""Such as `text`."""\nx = "a text"', []),
    ],
)
def test_a_name_is_found_where_a_generator_is_meant(tmp_path: Path, code: str, found: list[str]) -> None:
    (tmp_path / "a.py").write_text(code)
    assert list(named(tmp_path / "a.py", {"text", "video", "clip-rank"})) == found


def test_a_class_name_has_one_meaning() -> None:
    names: dict[str, list[str]] = {}
    for path in [*ROOT.rglob("*.py"), *(ROOT.parent / "plugins").rglob("*.py")]:
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef):
                names.setdefault(node.name, []).append(str(path))
    assert len(names) > 300
    assert {name: paths for name, paths in names.items() if len(paths) > 1} == {}
