"""The plugin template: an installable package with a working generator, tests and a README.

Try it: ``studio plugins new soft-glow``
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from studio.contract import good_name
from studio.errors import UnknownName, UsageError
from studio.files import new_folder
from studio.scaffold.families import FAMILIES
from studio.scaffold.files import files

__all__ = ["FAMILIES", "package_of", "write"]


def package_of(name: str) -> str:
    """The import package of the plugin `name`: ``soft-glow`` is ``studio_soft_glow``."""
    return "studio_" + name.replace("-", "_")


def write(name: str, parent: Path | str = ".", *, family: str = "image", stepped: bool = False) -> Path:
    """Write the package into the new folder `parent`/`name`, atomically, and return that folder.

    Raises UsageError for an invalid name or an existing folder or package, UnknownName for a family, StoreError if the
    folder cannot be written.
    """
    if family not in FAMILIES:
        raise UnknownName("family", family, FAMILIES)
    if not good_name(name):
        hint = "a name is 1 to 50 of a-z, 0-9, `-` and `_`, starting with a letter, such as `soft-glow`"
        raise UsageError(f"`{name[:60]}` is not a valid name for a plugin", hint=hint)
    if importlib.util.find_spec(package_of(name)) is not None:
        raise UsageError(f"the package `{package_of(name)}` already exists", hint="choose another name")
    folder = Path(parent) / name
    if os.path.lexists(folder):
        raise UsageError(f"`{folder}` already exists", hint="choose another name, or remove it")
    with new_folder(folder, overwrite=False) as draft:
        for path, text in files(name, package_of(name), family, stepped).items():
            (draft / path).parent.mkdir(parents=True, exist_ok=True)
            (draft / path).write_text(text, encoding="utf-8")
    return folder
