"""Plugin discovery and registry; a broken plugin does not affect others.

`Plugins` has everything that plugins register; `studio.plugins.commands` finds only their commands, quickly, for
``studio --help``. Names are loaded on first use, so that `commands` imports neither pydantic nor generators.

Try it: ``studio plugins``
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from studio.plugins.sources import BY_PATH, GROUP, OWN

if TYPE_CHECKING:
    from studio.plugins.hooks import PluginReport
    from studio.plugins.registry import Plugins, how_to_load, missing

__all__ = ["BY_PATH", "GROUP", "OWN", "PluginReport", "Plugins", "how_to_load", "missing"]

_HOMES = {"PluginReport": "hooks", "Plugins": "registry", "how_to_load": "registry", "missing": "registry"}


def __getattr__(name: str) -> Any:
    """Load a name when it is first used (PEP 562)."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'studio.plugins' has no attribute {name!r}")
    value = getattr(import_module(f"studio.plugins.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
