"""Plugin extensions besides generators: CLI commands, methods of `Studio`, and embedders for evaluation.

Each is declared by name; its code is imported when it is first used, so that listing commands stays fast. This module
imports nothing heavy.

Try it: ``studio plugins``
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, TypeVar

HOST_COMMANDS = {
    "generate": "Generate media with any generator.",
    "run": "Run a workflow.",
    "flow": "Check or draw a workflow file.",
    "models": "Download, list and remove models.",
    "resume": "Resume requests after a crash.",
    "jobs": "Queue work that outlives the process, and run it.",
    "mcp": "Serve agents over standard input and output (Model Context Protocol).",
    "serve": "Serve all generators over HTTP: for OpenAI's clients and others.",
    "token": "Create, list and revoke the tokens of the server's clients.",
    "top": "Show the running requests of all processes, live.",
    "plugins": "List, create and check plugins.",
    "show": "Show the recipe of an output.",
    "share": "Copy an output without its recipe and prompt; its AI label stays.",
    "replay": "Regenerate an output from its recipe, and compare.",
    "doctor": "Show versions, devices, memory and attention backends.",
    "attention": "Show which attention backend serves a shape, how fast, and why others cannot.",
    "train": "Train a model with a plugin's recipe.",
    "eval": "Measure the quality and speed of an image generator.",
}
"""The built-in commands with their help, in display order. Plugins cannot use these names."""

_NAME = re.compile(r"[a-z][a-z0-9-]{0,29}")
_METHOD = re.compile(r"[a-z][a-z0-9_]{0,49}")
_TARGET = re.compile(r"(\.?[A-Za-z_]\w*(\.[A-Za-z_]\w*)*)?:[A-Za-z_]\w*")
_MOST_HELP = 80

TargetT = TypeVar("TargetT", "Command", "Method")


@dataclass(frozen=True)
class Command:
    """A command of the command line, run as ``studio NAME``.

    `help` is its line in ``studio --help``. `target` names its `click.Command`, like an entry point:
    ``package.module:attribute``, ``.module:attribute`` within the plugin's package, or ``:attribute`` in the plugin's
    own module. That module is imported when the command is run.
    """

    name: str
    help: str
    target: str


@dataclass(frozen=True)
class Method:
    """A method of `Studio`: ``studio.Studio().NAME(…)`` calls the function `target` with the `Studio` first.

    `target` has the same form as in `Command`. The function's module is imported at the first call.
    """

    name: str
    target: str


@dataclass(frozen=True)
class Embedder:
    """Generators that embed images, and text about them, in one vector space; ``studio eval`` uses them.

    `pictures` names a generator with an input `images` whose output is their concatenated unit vectors; `texts` names
    one with an input `text`, or is None if the space has only images.
    """

    name: str
    pictures: str
    texts: str | None = None


def check_command(command: object) -> list[str]:
    """The reasons why this is not a valid `Command`; empty if it is."""
    if not isinstance(command, Command):
        return [f"{_kind(command)} is not a `studio.Command`"]
    reasons = [] if _matches(_NAME, command.name) else [
        f"its name is {command.name!r}; a name is 1 to 30 of a-z, 0-9 and `-`, starting with a letter"
    ]  # fmt: skip
    if not isinstance(command.help, str) or not 0 < len(command.help) <= _MOST_HELP or not command.help.isprintable():
        reasons.append(f"its help must be one line of 1 to {_MOST_HELP} characters")
    return reasons + _check_target(command.target)


def check_method(method: object) -> list[str]:
    """The reasons why this is not a valid `Method`; empty if it is."""
    if not isinstance(method, Method):
        return [f"{_kind(method)} is not a `studio.Method`"]
    reasons = [] if _matches(_METHOD, method.name) else [
        f"its name is {method.name!r}; a name is 1 to 50 of a-z, 0-9 and `_`, starting with a letter"
    ]  # fmt: skip
    return reasons + _check_target(method.target)


def check_embedder(embedder: object) -> list[str]:
    """The reasons why this is not a valid `Embedder`; empty if it is."""
    if not isinstance(embedder, Embedder):
        return [f"{_kind(embedder)} is not a `studio.Embedder`"]
    named = {"name": embedder.name, "pictures": embedder.pictures, "texts": embedder.texts or "none"}
    return [
        f"its `{what}` is {value!r}; it must be a name" for what, value in named.items() if not _matches(_NAME, value)
    ]


def _check_target(target: object) -> list[str]:
    if _matches(_TARGET, target):
        return []
    return [f"its target is {target!r}; a target is `package.module:attribute`, `.module:attribute` or `:attribute`"]


def _matches(pattern: re.Pattern[str], text: object) -> bool:
    return isinstance(text, str) and bool(pattern.fullmatch(text))


def _kind(each: object) -> str:
    return f"the class `{each.__name__}`" if isinstance(each, type) else type(each).__name__


def located(declared: TargetT, plugin: str) -> TargetT:
    """The declaration with the full module name in its target; `plugin` is the name of the plugin's module."""
    module, _, attribute = declared.target.partition(":")
    if not module or module.startswith("."):
        module = plugin + module
    return replace(declared, target=f"{module}:{attribute}")


def resolve(target: str) -> Any:
    """Import a target with a full module name. Raises AttributeError, and any error of the import."""
    from importlib import import_module

    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)
