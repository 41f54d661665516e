"""Generating loads no training code."""

from __future__ import annotations

import ast
from pathlib import Path

PLUGINS = Path(__file__).parents[2] / "plugins"


def imported(node: ast.AST) -> set[str]:
    """The modules that code imports, also within functions."""
    made = set()
    for each in ast.walk(node):
        if isinstance(each, ast.Import):
            made |= {alias.name for alias in each.names}
        elif isinstance(each, ast.ImportFrom) and each.module and not each.level:
            made |= {each.module, *(f"{each.module}.{alias.name}" for alias in each.names)}
    return made


def test_what_generates_imports_neither_training_nor_recipes() -> None:
    files = {".".join(path.relative_to(PLUGINS).with_suffix("").parts): path for path in PLUGINS.rglob("*.py")}
    trees = {name.removesuffix(".__init__"): ast.parse(path.read_text("utf-8")) for name, path in files.items()}
    found: dict[str, str] = {}  # module, and the one that imports it
    waiting = []
    for plugin, tree in trees.items():
        if "." in plugin:
            continue
        for hook in tree.body:
            if isinstance(hook, ast.FunctionDef) and hook.name != "studio_trainers":
                waiting += [(each, plugin) for each in imported(hook)]
        waiting += [(f"{plugin}.{name}", plugin) for name in ("methods", "commands") if f"{plugin}.{name}" in trees]
    assert waiting
    while waiting:
        module, by = waiting.pop()
        if module not in found:
            found[module] = by
            if module in trees and "." in module:  # the hooks of a package were read above
                waiting += [(each, module) for each in imported(trees[module])]
    wrong = [(each, by) for each, by in found.items() if each.startswith(("studio.training", "recipes"))]
    assert wrong == []
