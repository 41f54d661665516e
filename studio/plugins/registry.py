"""The plugin registry: everything that plugins register, by name, and a report on every plugin.

A broken plugin does not affect others: an exception (SystemExit included), unreadable metadata, a misspelt hook, an
invalid generator or a duplicate name is listed with its reason in `Plugins.reports`, and everything else works. The
first plugin with a name wins; the built-in plugins are loaded first, then other installed ones by name, the user's
folder, and ``--plugin``.

Try it: ``studio plugins``
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

from studio.attention.backend import BUILT_IN as BUILT_IN_BACKENDS
from studio.attention.backend import Backend
from studio.attention.backend import check as check_backend
from studio.contract import check, check_trainer
from studio.errors import UsageError, trace_of
from studio.extensions import Command, Embedder, Method, check_embedder, check_method, located
from studio.generator import Generator, Trainer
from studio.plugins.commands import claims as command_claims
from studio.plugins.commands import offered as commands_offered
from studio.plugins.hooks import Claims, PluginReport, call, check_hooks, explain, imported, let_interrupt, manager_of
from studio.plugins.sources import PluginSource, sources
from studio.recipe import PluginRef

_HOOKS = {"attention": "attention_backends"}  # where the hook's name differs from the kind


class Plugins:
    """The objects of all plugins, each kind by name, and a report on every plugin.

    `reserved` are names that methods cannot have.
    """

    def __init__(self, reserved: Collection[str] = ()) -> None:
        self.generators: dict[str, Generator] = {}
        self.trainers: dict[str, Trainer] = {}
        self.attention: dict[str, Backend] = {}
        self.commands: dict[str, Command] = {}
        self.methods: dict[str, Method] = {}
        self.embedders: dict[str, Embedder] = {}
        self.reports: list[PluginReport] = []
        self._owners: dict[str, PluginRef] = {}
        self._claims = {
            "generators": Claims("generator", self.generators, check),
            "trainers": Claims("trainer", self.trainers, check_trainer),
            "attention": Claims("attention backend", self.attention, check_backend, BUILT_IN_BACKENDS),
            "commands": command_claims(self.commands),
            "methods": Claims("method", self.methods, check_method, reserved),
            "embedders": Claims("embedder", self.embedders, check_embedder),
        }

    @classmethod
    def discover(
        cls,
        paths: Sequence[Path | str] = (),
        *,
        entry_points: bool = True,
        user_folder: Path | None = None,
        reserved: Collection[str] = (),
    ) -> Plugins:
        """Import every plugin. Raises only UsageError, if one of `paths` does not exist."""
        found = cls(reserved)
        for source in sources(paths, entry_points, user_folder):
            found._add(source)
        return found

    def owner(self, generator: str) -> PluginRef:
        """The plugin of a generator."""
        return self._owners[generator]

    def _add(self, source: PluginSource) -> None:
        reasons: list[str] = []
        text = ""
        taken: dict[str, Any] = {}  # names by kind
        try:
            module = imported(source)
            hooks = manager_of(module).hook
            reasons += check_hooks(module)
            for kind, claims in self._claims.items():
                hook = getattr(hooks, f"studio_{_HOOKS.get(kind, kind)}")
                offered = commands_offered(source, hook, reasons) if kind == "commands" else call(hook, reasons)
                taken[kind] = tuple(claims.take(offered, source.name, reasons))
            taken["trainers"] = tuple(name for name in taken["trainers"] if self.trainers[name].runs)
            ref = PluginRef(name=source.name, version=source.version)
            self._owners |= dict.fromkeys(taken["generators"], ref)
            self.commands |= {name: located(self.commands[name], module.__name__) for name in taken["commands"]}
            self.methods |= {name: located(self.methods[name], module.__name__) for name in taken["methods"]}
        except BaseException as error:  # a plugin may raise anything, SystemExit too
            let_interrupt(error)
            reasons.append(explain(error))
            text = trace_of(error)
        if not reasons and not any(taken.values()):
            reasons.append("registers nothing")
        works: Literal["partly", "failed"] = "partly" if any(taken.values()) else "failed"
        status = works if reasons else "ok"
        origin = (source.name, source.version, source.origin)
        self.reports.append(PluginReport(*origin, status, tuple(reasons), **taken, traceback_text=text))


def how_to_load(name: str) -> str:
    """The hint for a plugin that is not loaded. Studio never installs anything."""
    return f"if you trust it, install `{name[:100]}` with pip, or load it with `--plugin PATH` or STUDIO_PLUGINS"


def missing(generator: str, plugin: PluginRef, reports: Sequence[PluginReport]) -> UsageError:
    """The error for a generator of a recipe or a saved request whose plugin is not loaded, or no longer has it."""
    name, found = plugin.name, next((each for each in reports if each.name == plugin.name), None)
    if found is None:
        message = f"`{generator}` needs the plugin `{name}` {plugin.version}, which is not loaded"
        return UsageError(message, hint=how_to_load(name))
    if found.status != "ok":
        message = f"`{generator}` needs the plugin `{name}` {plugin.version}, which is not loaded: {found.reason}"
        return UsageError(message, hint="fix the plugin; `studio plugins` shows why it failed")
    message = f"the plugin `{name}` {found.version} has no `{generator}`, which {plugin.version} had"
    return UsageError(message, hint=f"install version {plugin.version} of the plugin")
