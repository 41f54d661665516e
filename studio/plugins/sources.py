"""Finding plugins: entry points, the user's plugin folder, and files or folders named with ``--plugin``.

A plugin with damaged metadata or an unreadable file is a source too, whose `load` raises the reason. A plugin is
imported only by `load`.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

from studio.errors import PluginError, UsageError, describe

GROUP = "studio.plugins"
OWN = "multimodal-studio"
BY_PATH = "studio_plugin_"  # prefix of the module names of plugins loaded by path
_IMPORTED: dict[tuple[Path, str], ModuleType] = {}  # plugins loaded by path, by path and digest


@dataclass(frozen=True)
class PluginSource:
    """A plugin before it is imported."""

    name: str
    version: str
    origin: str
    load: Callable[[], ModuleType]
    file: Callable[[], Path | None]  # its source, read for `studio_api` before anything of it runs


def sources(paths: Sequence[Path | str], entry_points: bool, user_folder: Path | None) -> Iterator[PluginSource]:
    """Every plugin, built-in ones first; each path once. Raises UsageError for a path that does not exist."""
    if entry_points:
        yield from sorted(_installed(), key=lambda each: (not each.origin.startswith(f"{OWN}: "), each.name))
    if user_folder is not None and user_folder.is_dir():
        yield from map(_source, _members(user_folder))
    for path in {path.absolute().resolve(): path for path in map(Path, paths)}.values():
        if not path.is_file() and not path.is_dir():
            what = f"the plugin `{path}` " + ("is not a file or a folder" if path.exists() else "does not exist")
            raise UsageError(what, hint="`--plugin` takes a Python file or a folder")
        members = [path] if path.is_file() or (path / "__init__.py").is_file() else _members(path)
        if not members:
            raise UsageError(f"the folder `{path}` contains no plugin", hint="put a `.py` file or a package into it")
        yield from map(_source, members)


def _installed() -> Iterator[PluginSource]:
    """The entry points of all distributions; of two with one name, the first on `sys.path` wins, as in imports."""
    seen: set[str] = set()
    for distribution in importlib.metadata.distributions():
        place = getattr(distribution, "_path", "an installed distribution")  # the path of its metadata
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
                yield PluginSource(point.name, version, f"{name}: {point.value}", _loader(point), file)
        except Exception as error:  # of metadata that are damaged or missing
            yield _unreadable(Path(str(place)), f"its metadata cannot be read: {describe(error)}")


def _unreadable(path: Path, reason: str) -> PluginSource:
    """A plugin whose metadata or file cannot be read."""

    def load() -> ModuleType:
        raise PluginError(reason)

    return PluginSource(_stem(path), "?", str(path), load, lambda: None)


def _loader(point: importlib.metadata.EntryPoint) -> Callable[[], ModuleType]:
    def load() -> ModuleType:
        module = point.load()
        if not isinstance(module, ModuleType):
            raise PluginError(f"its entry point `{point.value}` must name a module, not {type(module).__name__}")
        return module

    return load


def _members(folder: Path) -> list[Path]:
    """The plugins in a folder: its Python files and packages, except hidden and private ones."""
    found = [
        each for each in folder.iterdir() if (each.suffix == ".py" and each.is_file()) or _main_file(each).is_file()
    ]
    return sorted(each for each in found if not each.name.startswith((".", "_")))


def _source(path: Path) -> PluginSource:
    """A plugin by path; its version is the hash of its code, so that a replay detects changes."""
    import hashlib  # it loads OpenSSL, which `studio --help` does not need

    path = path.resolve()
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    try:
        digest = hashlib.sha256(b"".join(each.read_bytes() for each in files if each.is_file())).hexdigest()
    except OSError as error:
        return _unreadable(path, f"it cannot be read: {error.strerror or describe(error)}")
    return PluginSource(
        _stem(path), f"sha256:{digest[:16]}", str(path), partial(_import, path, digest), lambda: _main_file(path)
    )


def _stem(path: Path) -> str:
    """The name without suffix as text; bytes that are not UTF-8 are escaped."""
    return os.fsencode(path.stem).decode("utf-8", "backslashreplace")


def _main_file(path: Path) -> Path:
    return path / "__init__.py" if path.is_dir() else path


def _file_of(module: str) -> Path | None:
    """The source file of an installed module, without running it, or None."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # importing it reports the reason
        return None
    return Path(spec.origin) if spec and spec.has_location and spec.origin else None


def _import(path: Path, digest: str) -> ModuleType:
    """Import a file or package under a unique name; a failed import leaves nothing behind.

    A process imports it once, and again if its code (the digest) has changed.
    """
    if (path, digest) in _IMPORTED:
        module = sys.modules[_IMPORTED[path, digest].__name__] = _IMPORTED[path, digest]
        return module
    import hashlib

    name = f"{BY_PATH}{_stem(path)}_{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"
    folder = [str(path)] if path.is_dir() else None
    spec = importlib.util.spec_from_file_location(name, _main_file(path), submodule_search_locations=folder)
    if spec is None or spec.loader is None:
        raise PluginError(f"`{path}` is not a Python file or package")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    _IMPORTED[path, digest] = module
    return module
