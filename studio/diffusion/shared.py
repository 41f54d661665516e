"""What a pipeline's call shares with others: attention processors and hooks of modules, and torch's own generators.

Some pipelines set these while they draw, such as those of perturbed attention guidance. The host applies a guest's
settings only while the guest's own code or one of its calls runs, so that other requests never meet them. Others draw
from torch's default generators although they are given one: each guest has these as its seed sets them.

Try it: ``pytest tests/studio/diffusion/test_shared.py``
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

_HOOKS = ("_forward_pre_hooks", "_forward_hooks")


@dataclass(frozen=True, eq=False)
class ModuleSettings:
    """A guest's settings, by the number of the module.

    Attributes:
        processors: attention processors other than those that were loaded.
        hooks: by module, kind and the hook's number.
    """

    processors: Mapping[int, Any] = field(default_factory=dict)
    hooks: Mapping[tuple[int, str, int], Any] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.processors or self.hooks)


class Shared:
    """The modules of a model with the attention processors that they were loaded with."""

    def __init__(self, components: Mapping[str, nn.Module]) -> None:
        self._modules = list(dict.fromkeys(each for part in components.values() for each in part.modules()))
        self._processors = {i: each.processor for i, each in enumerate(self._modules) if hasattr(each, "processor")}

    @contextmanager
    def applied(self, settings: ModuleSettings) -> Iterator[None]:
        """The modules with a guest's settings."""
        if not settings:
            yield
            return
        self.apply(settings)
        try:
            yield
        finally:
            self.take(settings, RemovableHandle.next_id)

    def apply(self, settings: ModuleSettings) -> int:
        """Set the modules. Returns the number that the next hook will have, for `take`."""
        for i, processor in settings.processors.items():
            _set(self._modules[i], processor)
        for (i, kind, number), hook in settings.hooks.items():
            getattr(self._modules[i], kind)[number] = hook
        return int(RemovableHandle.next_id)

    def take(self, known: ModuleSettings, since: int) -> ModuleSettings:
        """Put the modules back, and return what was set: what was `known`, and hooks from number `since` on."""
        processors, hooks = {}, {}
        for i, loaded in self._processors.items():
            found = self._modules[i].processor
            if found is not loaded:
                processors[i] = found
                _set(self._modules[i], loaded)
        for (i, kind, number), hook in known.hooks.items():
            if getattr(self._modules[i], kind).pop(number, None) is not None:
                hooks[i, kind, number] = hook
        if RemovableHandle.next_id > since:
            hooks |= self._new_hooks(since)
        return ModuleSettings(processors, hooks) if processors or hooks else NONE

    def _new_hooks(self, since: int) -> dict[tuple[int, str, int], Any]:
        found = {(i, kind, number): hook for i, module in enumerate(self._modules) for kind in _HOOKS
                 for number, hook in getattr(module, kind).items() if number >= since}  # fmt: skip
        for i, kind, number in found:
            getattr(self._modules[i], kind).pop(number)
        return found


NONE = ModuleSettings()


class Draws:
    """The states of torch's default generators for one guest, at first as after ``torch.manual_seed(seed)``."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._generators = [torch.default_generator]
        if device.type == "cuda" and torch.cuda.is_available():
            self._generators.append(torch.cuda.default_generators[device.index or 0])
        self._states = [torch.Generator(each.device).manual_seed(seed).get_state() for each in self._generators]

    @contextmanager
    def used(self) -> Iterator[None]:
        """Let the guest draw; the generators have their own states again afterwards."""
        before = [each.get_state() for each in self._generators]
        try:
            for each, state in zip(self._generators, self._states, strict=True):
                each.set_state(state)
            yield
            self._states = [each.get_state() for each in self._generators]
        finally:
            for each, state in zip(self._generators, before, strict=True):
                each.set_state(state)


def _set(module: nn.Module, processor: Any) -> None:
    module._modules.pop("processor", None)  # torch refuses to replace a module by another object
    module.processor = processor
