"""The hooks that a plugin can implement. Built-in plugins use only these.

A plugin is a module with functions marked with `studio.hookimpl`; it is found through the entry-point group
``studio.plugins``, the user's plugin folder, or ``--plugin PATH``. The plugin contract, these hooks and the classes
`Generator`, `State`, `Trainer` and `Backend`, has a version: a module declares ``studio_api = 1`` at its top.

Try it: ``studio plugins``
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from studio.attention import Backend
    from studio.extensions import Command, Embedder, Method
    from studio.generator import Generator, Trainer

PROJECT = "studio"
API = 1  # raised when a plugin written to it would not work with an older Studio
OLDEST_API = 1  # raised when a plugin written to an older one does not work any more
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def studio_generators() -> list[Generator]:  # type: ignore[empty-body]  # a hook's specification has no body
    """Return the generators that this plugin offers. Called once; must not load weights or import torch."""


@hookspec
def studio_trainers() -> list[Trainer]:  # type: ignore[empty-body]
    """Return the training recipes that ``studio train NAME`` offers. Called once; must not import torch."""


@hookspec
def studio_attention_backends() -> list[Backend]:  # type: ignore[empty-body]
    """Return the attention backends that this plugin offers. Called once; must not import torch."""


@hookspec
def studio_commands() -> list[Command]:  # type: ignore[empty-body]
    """Return the commands that this plugin adds to the command line.

    Called for every ``studio --help``, so the plugin's module must import nothing heavy: no torch, and none of its own
    modules that do. A module that implements this hook must define or import it by this name.
    """


@hookspec
def studio_methods() -> list[Method]:  # type: ignore[empty-body]
    """Return the methods that this plugin adds to `Studio`. Called once; must not import torch."""


@hookspec
def studio_embedders() -> list[Embedder]:  # type: ignore[empty-body]
    """Return the embedders with which ``studio eval`` compares images. Called once; must not import torch."""
