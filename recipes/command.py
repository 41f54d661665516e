"""Run a recipe as `studio train` runs the recipe of a plugin: the same options, errors and exit codes."""

from __future__ import annotations

import sys
from pathlib import Path

from studio.cli.main import run

PLUGIN = Path(__file__).with_name("plugin.py")


def main(name: str) -> None:
    """Run the recipe `name` of `plugin.py` with the command line's options, and exit."""
    sys.exit(run(["--plugin", str(PLUGIN), "train", name, *sys.argv[1:]]))
