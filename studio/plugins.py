"""Finding plugins: entry points, the user's plugin folder, and files or folders named with ``--plugin``.

A broken plugin costs only itself: whatever it raises (SystemExit included), a distribution whose metadata cannot be
read, a misspelt hook, a bad generator, a name already taken: each is listed with its reason in `Plugins.reports`, and
everything else works. The first to claim a name
keeps it; Studio's own plugins come first, then other installed ones by name, the user's folder, and ``--plugin``. This
module knows nothing of engines or stores.

Try it: ``studio plugins``
"""

from __future__ import annotations

import dis
import hashlib
import importlib.metadata
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pluggy

from studio import hookspecs
from studio.attention.backend import OWN as OWN_BACKENDS
from studio.attention.backend import Backend
from studio.attention.backend import check as check_backend
from studio.errors import PluginError, UsageError, class_name, clean, describe, nearest, trace_of
from studio.generator import Generator, Trainer, check, check_trainer
from studio.recipe import PluginRef

GROUP = "studio.plugins"
OWN = "multimodal-studio"
BY_PATH = "studio_plugin_"  # begins the module names of plugins that were loaded by their path
_DECLARED_API = re.compile(rb"^studio_api\s*(?::[^=\n]*)?=\s*([^#\n]*)", re.M)
_HOOKS = tuple(name for name in vars(hookspecs) if name.startswith("studio_"))


@dataclass(frozen=True)
class PluginReport:
    """What became of one plugin.

    `status`: ``ok``; ``partly`` if something of it works and something does not; ``failed`` if nothing does. `origin`
    is the entry point or the path. `generators`, `trainers` and `attention` name what works.
    """

    name: str
    version: str
    origin: str
    status: Literal["ok", "partly", "failed"]
    reasons: tuple[str, ...] = ()
    generators: tuple[str, ...] = ()
    trainers: tuple[str, ...] = ()
    attention: tuple[str, ...] = ()
    traceback_text: str = ""

    @property
    def reason(self) -> str | None:
        """All reasons in one line, or None."""
        return "; ".join(self.reasons) or None


@dataclass(frozen=True)
class _Source:
    """A plugin before it is imported."""

    name: str
    version: str
    origin: str
    load: Callable[[], ModuleType]
    file: Callable[[], Path | None]  # its source, read for `studio_api` before anything of it runs


class Plugins:
    """The plugins found: `generators`, `trainers` and `attention` backends by name, and a report on every plugin."""

    def __init__(self) -> None:
        self.generators: dict[str, Generator] = {}
        self.trainers: dict[str, Trainer] = {}
        self.attention: dict[str, Backend] = {}
        self.reports: list[PluginReport] = []
        self._owners: dict[str, PluginRef] = {}

    @classmethod
    def discover(
        cls, paths: Sequence[Path | str] = (), *, entry_points: bool = True, user_folder: Path | None = None
    ) -> Plugins:
        """Import every plugin. Raises UsageError if one of `paths` does not exist; nothing else."""
        found = cls()
        for source in _sources(paths, entry_points, user_folder):
            found._add(source)
        return found

    def owner(self, generator: str) -> PluginRef:
        """The plugin that a generator came from."""
        return self._owners[generator]

    def _add(self, source: _Source) -> None:
        reasons: list[str] = []
        text = ""
        generators: list[str] = []
        trainers: list[str] = []
        attention: list[str] = []
        try:
            _check_api(source.file())
            module = source.load()
            manager = _manager(module)
            reasons += _check_hooks(module)
            hooks = manager.hook
            offered = _call(hooks.studio_generators, reasons)
            generators = self._take("generator", self.generators, offered, check, reasons)
            self._owners |= {name: PluginRef(name=source.name, version=source.version) for name in generators}
            offered = _call(hooks.studio_trainers, reasons)
            trainers = self._take("trainer", self.trainers, offered, check_trainer, reasons)
            offered = _call(hooks.studio_attention_backends, reasons)
            kind = "attention backend"
            attention = self._take(kind, self.attention, offered, check_backend, reasons, OWN_BACKENDS)
        except BaseException as error:  # a plugin may raise anything, SystemExit too
            _let_interrupt(error)
            reasons.append(_explain(error))
            text = trace_of(error)
        taken = (tuple(generators), tuple(trainers), tuple(attention))
        if not reasons and not any(taken):
            reasons.append("registers nothing")
        status: Any = "ok" if not reasons else "partly" if any(taken) else "failed"
        origin = (source.name, source.version, source.origin)
        self.reports.append(PluginReport(*origin, status, tuple(reasons), *taken, traceback_text=text))

    def _take(
        self, what: str, kept: dict[str, Any], offered: Iterable[Any], faults: Callable[[object], list[str]],
        reasons: list[str], reserved: Sequence[str] = (),
    ) -> list[str]:  # fmt: skip
        """Keep what is good of what a hook returned, by name; the reasons tell of the rest. Returns the names kept."""
        taken = []
        for each in offered:
            try:
                label = getattr(each, "name", "") or getattr(each, "__name__", class_name(type(each)))
                bad, name = [clean(fault, 500) for fault in faults(each)], getattr(each, "name", "")
            except BaseException as error:  # a property may raise anything
                _let_interrupt(error)
                reasons.append(f"{what} of class `{class_name(type(each))}`: {_explain(error)}")
                continue
            if bad:
                reasons.append(f"{what} `{label}`: {'; '.join(bad)}")
            elif name in kept or name in reserved:
                owner = self._owners.get(name) if kept is self.generators else None
                reasons.append(f"the {what}'s name `{name}` is taken{f' by plugin `{owner.name}`' if owner else ''}")
            else:
                kept[name] = each
                taken.append(name)
        return taken


def how_to_load(name: str) -> str:
    """What to do about a plugin that is not loaded. Nothing is ever installed for a file's sake."""
    return f"if you trust it, install `{name[:100]}` with pip, or name its file by `--plugin PATH` or STUDIO_PLUGINS"


def missing(generator: str, plugin: PluginRef, reports: Sequence[PluginReport]) -> UsageError:
    """The error for a generator of a recipe or a saved request whose plugin is not loaded, or no longer has it."""
    name, found = plugin.name, next((each for each in reports if each.name == plugin.name), None)
    if found is None:
        message = f"`{generator}` is of the plugin `{name}` {plugin.version}, which is not loaded"
        return UsageError(message, hint=how_to_load(name))
    if found.status != "ok":
        message = f"`{generator}` is of the plugin `{name}` {plugin.version}, which is not loaded: {found.reason}"
        return UsageError(message, hint="mend it; `studio plugins` lists what is wrong")
    message = f"the plugin `{name}` {found.version} has no `{generator}`, which {plugin.version} had"
    return UsageError(message, hint=f"load version {plugin.version} of it")


def _manager(module: ModuleType) -> pluggy.PluginManager:
    """A manager of one plugin alone, so that no other plugin's failure reaches it. Raises pluggy's validation error."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(module)
    return manager


def _call(hook: pluggy.HookCaller, reasons: list[str]) -> list[object]:
    """Call a hook; a failure or a result that is no list becomes a reason."""
    try:
        results = hook()
    except BaseException as error:  # a plugin may raise anything, SystemExit too
        _let_interrupt(error)
        reasons.append(f"`{hook.name}`: {_explain(error)}")
        return []
    offered: list[object] = []
    for result in results:
        if isinstance(result, list | tuple):
            offered += result
        else:
            reasons.append(f"`{hook.name}` returned {type(result).__name__}; a list is due")
    return offered


def _check_hooks(module: ModuleType) -> list[str]:
    """Find hooks that pluggy would pass over in silence: misspelt ones and unmarked ones."""
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


def _explain(error: BaseException) -> str:
    """One line for what a plugin raised, with the place in its code."""
    what = describe(error)
    machinery = {Path(__file__).parent, Path(pluggy.__file__).parent, Path(importlib.metadata.__file__).parent}
    try:
        frames = list(traceback.extract_tb(error.__traceback__))
    except BaseException:  # an exception may override its own traceback
        return what
    frames = [each for each in frames if Path(each.filename).parent not in machinery]
    frames = [each for each in frames if not each.filename.startswith("<") and "importlib" not in each.filename]
    return f"{what} ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else what


def _let_interrupt(error: BaseException) -> None:
    """Raise a KeyboardInterrupt again that is the user's own: one that no `raise` statement of a plugin made."""
    if type(error) is not KeyboardInterrupt or error.__traceback__ is None:
        return
    last = error.__traceback__
    while last.tb_next is not None:
        last = last.tb_next
    if dis.opname[last.tb_frame.f_code.co_code[last.tb_lasti]] != "RAISE_VARARGS":
        raise error


def _sources(paths: Sequence[Path | str], entry_points: bool, user_folder: Path | None) -> Iterator[_Source]:
    if entry_points:
        yield from sorted(_installed(), key=lambda each: (not each.origin.startswith(f"{OWN}: "), each.name))
    if user_folder is not None and user_folder.is_dir():
        yield from map(_source, _members(user_folder))
    for path in dict.fromkeys(map(Path, paths)):
        if not path.is_file() and not path.is_dir():
            what = f"the plugin `{path}` is not a file or a folder" if path.exists() else f"there is no plugin `{path}`"
            raise UsageError(what, hint="`--plugin` takes a Python file or a folder")
        members = [path] if path.is_file() or (path / "__init__.py").is_file() else _members(path)
        if not members:
            raise UsageError(f"the folder `{path}` holds no plugin", hint="put a `.py` file or a package into it")
        yield from map(_source, members)


def _installed() -> Iterator[_Source]:
    """The entry points of all distributions; of two of one name the first on `sys.path` counts, as in imports."""
    seen: set[str] = set()
    for distribution in importlib.metadata.distributions():
        place = getattr(distribution, "_path", "an installed distribution")  # where its metadata lie
        try:
            points = distribution.entry_points.select(group=GROUP)
            if not points:
                continue
            name, version = distribution.metadata["Name"], distribution.version
            if not name or not version:
                raise ValueError(f"they have no {'version' if name else 'name'}")
            plain = re.sub(r"[-_.]+", "-", name).lower()
            if plain in seen:
                continue
            seen.add(plain)
            for point in points:
                file = partial(_file_of, point.module)
                yield _Source(point.name, version, f"{name}: {point.value}", _loader(point), file)
        except Exception as error:  # of metadata that are damaged or missing
            yield _unreadable(Path(str(place)), f"its metadata cannot be read: {describe(error)}")


def _unreadable(path: Path, reason: str) -> _Source:
    """A plugin that cannot even be looked at."""

    def load() -> ModuleType:
        raise PluginError(reason)

    return _Source(_stem(path), "?", str(path), load, lambda: None)


def _loader(point: importlib.metadata.EntryPoint) -> Callable[[], ModuleType]:
    def load() -> ModuleType:
        module = point.load()
        if not isinstance(module, ModuleType):
            raise PluginError(f"its entry point `{point.value}` must name a module, not {type(module).__name__}")
        return module

    return load


def _members(folder: Path) -> list[Path]:
    """The plugins in a folder: its Python files and packages, hidden and private ones left out."""
    found = [
        each for each in folder.iterdir() if (each.suffix == ".py" and each.is_file()) or _main_file(each).is_file()
    ]
    return sorted(each for each in found if not each.name.startswith((".", "_")))


def _source(path: Path) -> _Source:
    """A plugin by path; its version is the hash of its code, so that a recipe tells when it changed."""
    path = path.resolve()
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    try:
        digest = hashlib.sha256(b"".join(each.read_bytes() for each in files if each.is_file())).hexdigest()
    except OSError as error:
        return _unreadable(path, f"it cannot be read: {error.strerror or describe(error)}")
    return _Source(_stem(path), f"sha256:{digest[:16]}", str(path), lambda: _import(path), lambda: _main_file(path))


def _stem(path: Path) -> str:
    """The name without suffix as text; what is not UTF-8 in it stands as escapes."""
    return os.fsencode(path.stem).decode("utf-8", "backslashreplace")


def _main_file(path: Path) -> Path:
    return path / "__init__.py" if path.is_dir() else path


def _file_of(module: str) -> Path | None:
    """The source of an installed module, without running it; None where there is none to read."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # importing it will tell
        return None
    return Path(spec.origin) if spec and spec.has_location and spec.origin else None


def _check_api(file: Path | None) -> None:
    """Raises PluginError for a plugin that declares a version of the contract that is not served here.

    The declaration is read and not run, since a plugin for a later version may not even import here.
    """
    found = _DECLARED_API.search(file.read_bytes()) if file is not None and file.is_file() else None
    if found is None:
        return
    declared, oldest, newest = found[1].strip().decode(errors="replace"), hookspecs.OLDEST_API, hookspecs.API
    served = f"this Studio serves {newest}" if oldest == newest else f"this Studio serves {oldest} to {newest}"
    if not declared.isdecimal():
        raise PluginError(f"`studio_api` is `{declared[:40]}`; it must be a whole number, and {served}")
    if not oldest <= int(declared) <= newest:
        remedy = "install a newer Studio" if int(declared) > newest else "install a newer version of it"
        raise PluginError(f"it is made for version {declared} of the plugin contract, and {served}: {remedy}")


def _import(path: Path) -> ModuleType:
    """Import a file or package under a name of its own; a failed import leaves nothing behind."""
    name = f"{BY_PATH}{_stem(path)}_{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"
    folder = [str(path)] if path.is_dir() else None
    spec = importlib.util.spec_from_file_location(name, _main_file(path), submodule_search_locations=folder)
    if spec is None or spec.loader is None:
        raise PluginError(f"`{path}` is no Python file or package")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
