"""The plugins that a workflow requires. It names distributions and versions; it never makes Studio load a plugin.

``plugins:`` is a mapping of names to versions (PEP 440, such as ``">=1.2"``, or ``null`` for any). A plugin that was
loaded by its path has the name of its file, and its version is the hash of its code.

Try it: ``studio flow check FILE``
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from studio.plugins import PluginReport, how_to_load
from studio.workflow.document import Value
from studio.workflow.problems import Problems

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9])?")


def check_plugins(needed: Value | None, loaded: Sequence[PluginReport], problems: Problems) -> None:
    """Add a problem for each entry of `plugins:` that is malformed, not loaded, or of another version."""
    if needed is None or needed.data is None:
        return
    if not isinstance(needed.data, dict):
        problems.add(needed.place, "`plugins` must be a mapping of names and versions", 'such as `soft-glow: ">=0.1"`')
        return
    for name, wanted in needed.data.items():
        if not _NAME.fullmatch(name):
            problems.add(wanted.place, f"`{name[:60]}` is not a plugin's name", "name a distribution")
        elif wanted.data is not None and not isinstance(wanted.data, str):
            problems.add(wanted.place, f"the version of `{name}` must be text", f'such as `{name}: ">=0.1"`')
        else:
            _check(name, wanted, loaded, problems)


def _check(name: str, wanted: Value, loaded: Sequence[PluginReport], problems: Problems) -> None:
    found = [each for each in loaded if _plain(name) in {_plain(each.name), _plain(each.origin.partition(": ")[0])}]
    working = [each for each in found if each.status != "failed"]
    version = (wanted.data or "").strip()
    said = f"the plugin `{name}`{f' {version[:60]}' if version else ''}"
    if not working:
        reason = f": {found[0].reason}" if found else ""
        problems.add(wanted.place, f"the workflow needs {said}, which is not loaded{reason}", how_to_load(name))
        return
    try:
        if not any(_fits(each.version, version) for each in working):
            has = ", ".join(f"`{each.version}`" for each in working)
            problems.add(wanted.place, f"the workflow needs {said}, but {has} is loaded", _another(name, working))
    except InvalidSpecifier:
        problems.add(wanted.place, f"`{version[:60]}` is not a version of `{name}`", 'such as `">=0.1"` or `"==1.2.*"`')


def _another(name: str, loaded: Sequence[PluginReport]) -> str:
    if all(each.version.startswith("sha256:") for each in loaded):
        return f"a plugin loaded from a file has no version: install it with pip, or write `{name}: null`"
    return "install another version"


def _fits(version: str, wanted: str) -> bool:
    if wanted.startswith("sha256:"):
        return version == wanted
    specifiers = SpecifierSet(wanted)
    try:
        return not wanted or specifiers.contains(Version(version), prereleases=True)
    except InvalidVersion:  # one that was loaded by its path has a hash
        return False


def _plain(name: str) -> str:
    """A name as PEP 503 compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()
