"""Taking a saved request up: is all still here that it was begun with, and what the engine calls instead of `start`.

Knows nothing of folders, plugins' discovery or when states are saved.

Try it: ``studio resume --list``
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from studio.engine.checkpoint import Checkpoint, Identity
from studio.engine.failures import check_state
from studio.engine.models import hash_weights
from studio.engine.request import Past
from studio.errors import CheckpointError
from studio.generator import Generator, Rng, State
from studio.inputs import Inputs
from studio.recipe import PluginRef


@dataclass(frozen=True)
class Resumption:
    """What `Request.resume` is for a saved request. `device` is where the engine's models are."""

    checkpoint: Checkpoint
    generator: Generator
    inputs: Inputs
    device: str

    def __call__(self, model: Any) -> tuple[State, Rng]:
        """Start once more, which tells the class of the state and what is not saved, and read the saved one into it.

        Raises CheckpointError, or whatever the generator's `start` raises.
        """
        rng = Rng(self.checkpoint.identity.seed)
        first = check_state(self.generator.start(model, self.inputs, rng))
        return self.checkpoint.state(first, self.device), rng


def past_of(identity: Identity, plugin: PluginRef, device: str) -> Past:
    """What the recipe has to tell of the time before; that the device or the plugin was another then is a notice."""
    pairs = {"the plugin's version": (identity.plugin.version, plugin.version), "the device": (identity.device, device)}
    changes = [f"resumed; {what} was `{old}`, and is `{new}` now" for what, (old, new) in pairs.items() if old != new]
    width = identity.batch_width
    return Past(width.min, width.max, identity.seconds, (*identity.notices, *changes))


def check_unchanged(checkpoint: Checkpoint, generator: Generator, plugin: PluginRef) -> None:
    """Raises CheckpointError where another generator, version or weights would go on with the state."""
    then = checkpoint.identity
    if plugin.name != then.plugin.name:
        raise CheckpointError(
            checkpoint.path, f"`{then.generator}` was the plugin `{then.plugin.name}`'s, and is now `{plugin.name}`'s"
        )
    if generator.version != then.generator_version:
        versions = f"{then.generator_version} -> {generator.version}"
        raise CheckpointError(checkpoint.path, f"the version of `{then.generator}` has changed: {versions}")
    now = hash_weights(generator.weights())
    if now != then.weights:
        names = sorted(name for name in now.keys() | then.weights.keys() if now.get(name) != then.weights.get(name))
        raise CheckpointError(checkpoint.path, f"weights have changed: {', '.join(f'`{name}`' for name in names)}")
