"""The command line: one file per command, which uses only `studio.api`.

Nothing in this package imports torch, pydantic or a plugin before a command needs it, so that `studio --help` is
fast. Try it: `studio --help`, or `python -m studio --help`.
"""

from __future__ import annotations

import os
import sys

__all__ = ["main"]

# Libraries that look for plugins of their own in the metadata of every installed distribution, and fail if those of one
# are damaged. Studio needs none of these plugins.
_NO_PLUGINS = {"PYDANTIC_DISABLE_PLUGINS": "__all__", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}


def main() -> int:
    """Run the command in `sys.argv`; returns the exit code: 0, 1 failure, 2 usage, 130 interrupted."""
    for name, value in _NO_PLUGINS.items():
        os.environ.setdefault(name, value)
    try:
        from studio.cli.main import run

        return run(sys.argv[1:])
    except KeyboardInterrupt:  # before `run` could take care of it
        return 130
