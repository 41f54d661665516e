"""User configuration: plugins to load, from ``STUDIO_PLUGINS`` and the data folder's ``config.toml``, and its labels.

Both name plugins as files or folders, like ``--plugin``; ``ai_label`` and ``content_producer`` are about the AI label.
A plugin is code, and a data folder can come from anywhere: so ``config.toml`` and the folder ``plugins/`` are used only
in the default data folder, and in folders trusted with ``studio plugins trust``, which is recorded outside them.

Try it: ``STUDIO_PLUGINS=examples/invert.py studio plugins``
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.errors import MediaError, StoreError, UsageError, nearest
from studio.files import expanded, make_folder, read_limited, write_atomically
from studio.home import user_home
from studio.media.label import PRODUCER
from studio.plugins import PluginReport

PLUGINS_VARIABLE = "STUDIO_PLUGINS"
CONFIG = "config.toml"
FOLDER = "plugins"
_KEYS = ("plugins", "ai_label", "content_producer", "sign_certificate", "sign_key")
_KNOWN = ", ".join(f"`{key}`" for key in _KEYS)
_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class Named:
    """Plugins to load: their paths, the plugin folder of the data folder (or None), and refused plugins."""

    paths: tuple[Path, ...]
    folder: Path | None
    refused: tuple[PluginReport, ...]


@dataclass(frozen=True)
class LabelSettings:
    """Whether outputs are labelled as made by AI, the name or code of who makes them (`ContentProducer`), and the
    certificate and the key with which files are signed.
    """

    ai_label: bool = True
    content_producer: str = PRODUCER
    signer: tuple[Path | None, Path | None] = (None, None)


def labels(home: Path) -> LabelSettings:
    """The settings of the AI label in the data folder's ``config.toml``, if it is trusted; else the defaults. Raises
    UsageError for a value that is not valid; a file that cannot be read is reported by `plugins`.
    """
    config = home / CONFIG
    if not os.path.lexists(config) or not trusted(home):
        return LabelSettings()
    settings = _read(config)
    if isinstance(settings, str):
        return LabelSettings()
    on, producer = settings.get("ai_label", True), settings.get("content_producer", PRODUCER)
    if not isinstance(on, bool):
        raise UsageError(f"`ai_label` in `{config}` is {on!r}; it must be true or false")
    if not isinstance(producer, str) or not 0 < len(producer) <= 200 or not producer.isprintable():
        raise UsageError(f"`content_producer` in `{config}` is {str(producer)[:60]!r}; it must be 1 to 200 characters")
    certificate, key = (settings.get(name) for name in ("sign_certificate", "sign_key"))
    if not (isinstance(certificate, str) and isinstance(key, str)) and (certificate, key) != (None, None):
        raise UsageError(f"`sign_certificate` and `sign_key` in `{config}` must both be paths of files")
    paths = (config.parent / expanded(str(certificate)), config.parent / expanded(str(key)))
    return LabelSettings(on, producer, paths if key else (None, None))


def plugins(home: Path) -> Named:
    """The plugins that the environment and the data folder name. Those that cannot be used are in `refused`."""
    refused: list[PluginReport] = []
    words = os.environ.get(PLUGINS_VARIABLE, "").split(os.pathsep)
    paths = _existing([expanded(each) for each in words if each], PLUGINS_VARIABLE, refused)
    config, folder = home / CONFIG, home / FOLDER
    there = [each for each in (config, folder) if os.path.lexists(each)]
    if there and not trusted(home):
        reason = f"the data folder `{home}` may load plugins only after `studio plugins trust`"
        refused += [_refused(each.name, each, reason) for each in there]
        return Named(tuple(paths), None, tuple(refused))
    if config in there:
        paths += _configured(config, refused)
    return Named(tuple(paths), folder if folder in there else None, tuple(refused))


def _configured(config: Path, refused: list[PluginReport]) -> list[Path]:
    """The plugins of a configuration file; a path in it is relative to its folder."""
    settings = _read(config)
    if isinstance(settings, str):
        refused.append(_refused(CONFIG, config, settings))
        return []
    for key in settings:
        if key not in _KEYS:
            guess = f"; did you mean `{near}`?" if (near := nearest(key, _KEYS)) else f"; known: {_KNOWN}"
            refused.append(_refused(CONFIG, config, f"no setting is called `{key[:60]}`{guess}"))
    named = settings.get("plugins", [])
    if not isinstance(named, list) or not all(isinstance(each, str) for each in named):
        refused.append(_refused(CONFIG, config, '`plugins` must be a list of paths: `plugins = ["my_plugin.py"]`'))
        return []
    return _existing([config.parent / expanded(each) for each in named], str(config), refused)


def _read(config: Path) -> dict[str, Any] | str:
    """The settings in a configuration file, or why it cannot be read."""
    import tomllib

    try:
        return tomllib.loads(read_limited(config, _MOST_BYTES).decode())
    except MediaError as error:
        return error.message
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        return f"not TOML: {error}"


def _existing(paths: Sequence[Path], where: str, refused: list[PluginReport]) -> list[Path]:
    found = []
    for path in paths:
        if path.exists():
            found.append(path)
        else:
            refused.append(_refused(path.stem, path, f"there is no file or folder `{path}`, which {where} names"))
    return found


def _refused(name: str, origin: Path, reason: str) -> PluginReport:
    return PluginReport(name, "0", str(origin), "failed", (reason,))


def trusted(home: Path) -> bool:
    """Whether a data folder may load plugins: it is the default one, or was trusted."""
    return home.exists() and (_same(home, user_home()) or _mark(home) in _marks())


def trust(home: Path) -> Path:
    """Allow a data folder to load plugins; return the file in which that is recorded. Raises StoreError."""
    make_folder(home)
    import json

    marks = sorted({*_marks(), _mark(home)})
    make_folder(_file().parent)
    return write_atomically(_file(), (json.dumps(marks, indent=1) + "\n").encode())


def _file() -> Path:
    import platformdirs

    return Path(platformdirs.user_config_dir("multimodal-studio", appauthor=False)) / "trusted.json"


def _marks() -> list[str]:
    """The trusted folders. Raises StoreError for a damaged file."""
    import json

    if not _file().exists():
        return []
    try:
        marks = json.loads(read_limited(_file(), _MOST_BYTES))
    except (MediaError, ValueError) as error:
        hint = "remove it, and trust your data folders again"
        raise StoreError(f"cannot read `{_file()}`: {error}", hint=hint) from None
    return [each for each in marks if isinstance(each, str)] if isinstance(marks, list) else []


def _mark(home: Path) -> str:
    """A folder's path and inode number: another folder in its place has another mark."""
    return f"{home.stat().st_ino} {os.fsencode(home.resolve()).hex()}"


def _same(one: Path, other: Path) -> bool:
    return other.exists() and one.samefile(other)
