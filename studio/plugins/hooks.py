"""Calling the hooks of one plugin: its exceptions and invalid results become reasons in its report."""

from __future__ import annotations

import dis
import importlib.metadata
import inspect
import re
import traceback
from collections.abc import Callable, Collection, Iterable, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import pluggy

from studio import hookspecs
from studio.errors import PluginError, class_name, clean, describe, nearest

if TYPE_CHECKING:
    from studio.plugins.sources import PluginSource

_HOOKS = tuple(name for name in vars(hookspecs) if name.startswith("studio_"))
_DECLARED_API = re.compile(rb"^studio_api\s*(?::[^=\n]*)?=\s*([^#\n]*)", re.M)


@dataclass(frozen=True)
class PluginReport:
    """The status of one plugin.

    `status`: ``ok``; ``partly`` if some of its objects cannot be used; ``failed`` if none can. `origin` is the entry
    point or the path. `generators` and the following fields list the names that work.
    """

    name: str
    version: str
    origin: str
    status: Literal["ok", "partly", "failed"]
    reasons: tuple[str, ...] = ()
    generators: tuple[str, ...] = ()
    trainers: tuple[str, ...] = ()
    attention: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    embedders: tuple[str, ...] = ()
    traceback_text: str = ""

    @property
    def reason(self) -> str | None:
        """All reasons in one line, or None."""
        return "; ".join(self.reasons) or None


def imported(source: PluginSource) -> ModuleType:
    """Import the plugin. Raises PluginError for an unsupported version of the contract, and any error of the import."""
    _check_api(source.file())
    return source.load()


def manager_of(module: ModuleType) -> pluggy.PluginManager:
    """A plugin manager for one plugin, so that failures stay isolated. Raises pluggy's validation error."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(module)
    return manager


def call(hook: pluggy.HookCaller, reasons: list[str]) -> list[object]:
    """Call a hook; an exception, or a result that is not a list, becomes a reason."""
    try:
        results = hook()
    except BaseException as error:  # a plugin may raise anything, SystemExit too
        let_interrupt(error)
        reasons.append(f"`{hook.name}`: {explain(error)}")
        return []
    offered: list[object] = []
    for result in results:
        if isinstance(result, list | tuple):
            offered += result
        else:
            reasons.append(f"`{hook.name}` returned {type(result).__name__}; it must return a list")
    return offered


@dataclass(frozen=True)
class Claims:
    """The names of one kind of object and their plugins; `reserved` names are Studio's. The first plugin wins."""

    what: str
    kept: MutableMapping[str, Any]
    faults: Callable[[Any], list[str]]
    reserved: Collection[str] = ()
    owners: dict[str, str] = field(default_factory=dict)

    def take(self, offered: Iterable[Any], plugin: str, reasons: list[str]) -> list[str]:
        """Register the valid objects that a hook returned; the others become reasons. Returns the registered names."""
        taken = []
        for each in offered:
            try:
                label = getattr(each, "name", "") or getattr(each, "__name__", class_name(type(each)))
                bad, name = [clean(fault, 500) for fault in self.faults(each)], getattr(each, "name", "")
            except BaseException as error:  # a property may raise anything
                let_interrupt(error)
                reasons.append(f"{self.what} of class `{class_name(type(each))}`: {explain(error)}")
                continue
            if bad:
                reasons.append(f"{self.what} `{label}`: {'; '.join(bad)}")
            elif name in self.reserved:
                reasons.append(f"the {self.what} name `{name}` is reserved by Studio")
            elif name in self.kept:
                reasons.append(f"the {self.what} name `{name}` is already used by the plugin `{self.owners[name]}`")
            else:
                self.kept[name] = each
                self.owners[name] = plugin
                taken.append(name)
        return taken


def check_hooks(module: ModuleType) -> list[str]:
    """Find hooks that pluggy would silently ignore: misspelt and unmarked ones."""
    reasons = []
    for name, value in vars(module).items():
        if not inspect.isroutine(value):
            continue
        marker = getattr(value, f"{hookspecs.PROJECT}_impl", None)
        hook = (marker.get("specname") if isinstance(marker, dict) else None) or name
        if hook in _HOOKS and marker is None:
            reasons.append(f"`{name}` is not marked with `@studio.hookimpl`")
        elif hook not in _HOOKS and (marker is not None or (name.startswith("studio_") and nearest(name, _HOOKS))):
            guess = nearest(hook, _HOOKS)
            known = f"did you mean `{guess}`?" if guess else f"hooks are {', '.join(f'`{each}`' for each in _HOOKS)}"
            reasons.append(f"there is no hook `{hook}`; {known}")
    return reasons


def explain(error: BaseException) -> str:
    """One line for an exception of a plugin, with file and line."""
    what = describe(error)
    machinery = {
        Path(__file__).parent,
        Path(hookspecs.__file__).parent,
        Path(pluggy.__file__).parent,
        Path(importlib.metadata.__file__).parent,
    }
    try:
        frames = list(traceback.extract_tb(error.__traceback__))
    except BaseException:  # an exception may override its own traceback
        return what
    frames = [each for each in frames if Path(each.filename).parent not in machinery]
    frames = [each for each in frames if not each.filename.startswith("<") and "importlib" not in each.filename]
    return f"{what} ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else what


def let_interrupt(error: BaseException) -> None:
    """Re-raise a KeyboardInterrupt of the user, that is, one not raised by a `raise` statement of a plugin."""
    if type(error) is not KeyboardInterrupt or error.__traceback__ is None:
        return
    last = error.__traceback__
    while last.tb_next is not None:
        last = last.tb_next
    if dis.opname[last.tb_frame.f_code.co_code[last.tb_lasti]] != "RAISE_VARARGS":
        raise error


def _check_api(file: Path | None) -> None:
    """Raises PluginError for a plugin that declares an unsupported version of the contract.

    The declaration is read without importing, because a plugin for a later version may not even import.
    """
    found = _DECLARED_API.search(file.read_bytes()) if file is not None and file.is_file() else None
    if found is None:
        return
    declared, oldest, newest = found[1].strip().decode(errors="replace"), hookspecs.OLDEST_API, hookspecs.API
    served = f"this Studio supports {newest}" if oldest == newest else f"this Studio supports {oldest} to {newest}"
    if not declared.isdecimal():
        raise PluginError(f"`studio_api` is `{declared[:40]}`; it must be a whole number, and {served}")
    if not oldest <= int(declared) <= newest:
        remedy = "install a newer Studio" if int(declared) > newest else "install a newer version of the plugin"
        raise PluginError(f"it needs version {declared} of the plugin contract, and {served}: {remedy}")
