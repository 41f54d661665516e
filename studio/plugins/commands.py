"""Plugin commands only, for ``studio --help``, without importing pydantic or generators.

Only plugins whose main file contains `studio_commands` are imported, and only that hook is called. Failures are
reported by `Plugins`, which loads the same plugins in the same order.

Try it: ``studio --help``
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from studio.errors import PluginError
from studio.extensions import HOST_COMMANDS, Command, check_command, located, resolve
from studio.plugins.hooks import Claims, call, explain, imported, let_interrupt, manager_of
from studio.plugins.sources import PluginSource, sources

if TYPE_CHECKING:
    import click
    import pluggy

HOOK = "studio_commands"


@dataclass(frozen=True)
class PluginCommands:
    """The commands of plugins by name, in load order, and the failures of plugins."""

    commands: dict[str, Command] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)


def find(paths: Sequence[Path | str] = (), *, user_folder: Path | None = None) -> PluginCommands:
    """Find the commands of all plugins. Raises UsageError as `Plugins.discover`."""
    found = PluginCommands()
    claimed = claims(found.commands)
    for source in sources(paths, True, user_folder):
        reasons: list[str] = []
        try:
            if _named(source):
                module = imported(source)
                offered = call(manager_of(module).hook.studio_commands, reasons)
                names = claimed.take(offered, source.name, reasons)
                found.commands.update({name: located(found.commands[name], module.__name__) for name in names})
        except BaseException as error:  # a plugin may raise anything, SystemExit too
            let_interrupt(error)
            reasons.append(explain(error))
        if reasons:
            found.failed.append(f"plugin `{source.name}`: {'; '.join(reasons)}")
    return found


def claims(kept: MutableMapping[str, Command]) -> Claims:
    """The registry of command names."""
    return Claims("command", kept, check_command, HOST_COMMANDS)


def offered(source: PluginSource, hook: pluggy.HookCaller, reasons: list[str]) -> list[object]:
    """The commands of a plugin, if `find` finds them too; else a reason is added."""
    commands = call(hook, reasons)
    if commands and not _named(source):
        reasons.append(f"its commands cannot be found: its main file must define or import `{HOOK}` by that name")
        return []
    return commands


def load(command: Command) -> click.Command:
    """Import a command. Raises PluginError."""
    import click

    remedy = "`studio plugins` lists the plugins; run it with --debug for the traceback"
    try:
        value = resolve(command.target)
    except BaseException as error:  # a plugin may raise anything, SystemExit too
        let_interrupt(error)
        message = f"the command `{command.name}` cannot be loaded from `{command.target}`: {explain(error)}"
        raise PluginError(message, hint=remedy) from error
    if not isinstance(value, click.Command):
        kind = type(value).__name__
        message = f"the command `{command.name}`: `{command.target}` is {kind}; it must be a `click.Command`"
        raise PluginError(message, hint=remedy)
    return value


def _named(source: PluginSource) -> bool:
    """Whether the plugin's main file contains the hook's name; True if there is no source to read."""
    file = source.file()
    return file is None or not file.is_file() or HOOK.encode() in file.read_bytes()
