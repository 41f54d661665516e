"""A model on its device, in host memory, or evicted; how much memory evicting or offloading it frees.

Try it: ``pytest tests/studio/engine/memory``
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from studio.attention.current import DispatchSettings
from studio.engine.memory.components import Component

_UNSHARED_FRACTION = 4  # a model may be offloaded if at most a quarter as much memory is outside its components


class NotEnoughMemory(Exception):
    """There is not enough memory for a model now; there may be later."""


@dataclass(eq=False)
class Model:
    """A model and its facts for the recipe: `weights` maps file names to sha256. All sizes are bytes.

    `value` is None unless the model is `resident` (on the device) or `offloaded` (in host memory). `return_s` is how
    long its last load or restore took. `whole` is the size of its files; if it is `streamed`, `size` is the least that
    it needs: layers that always stay, and `passing` for groups of layers that come and go, in memory that all models
    share. `saved` is how much packing saved: loading needs that much more. `components` may be shared with other
    models; `unshared` bytes of other tensors stay on the device while the components are offloaded. `attention`
    dispatches its attention calls.
    """

    value: Any
    device: str
    dtype: str
    weights: dict[str, str] = field(default_factory=dict)
    name: str = ""
    size: int = 0
    resident: bool = True
    used: float = 0.0
    return_s: float = 0.0
    whole: int = 0
    saved: int = 0
    streamed: bool = False
    passing: int = 0
    offloaded: bool = False
    unshared: int = 0
    components: list[Component] = field(default_factory=list)
    attention: DispatchSettings | None = None

    @property
    def exclusive_components(self) -> list[Component]:
        """Components on the device that no other resident model uses."""
        return [
            component
            for component in self.components
            if component.on_device and not any(user.resident for user in component.users - {self})
        ]

    @property
    def bytes_freed(self) -> int:
        """Bytes that evicting it frees."""
        return self.unshared + sum(component.size for component in self.exclusive_components)

    @property
    def can_offload(self) -> bool:
        """Whether it may be offloaded: most of its memory is in components."""
        return bool(self.components) and self.unshared * _UNSHARED_FRACTION <= sum(
            component.size for component in self.components
        )


Rank = Callable[[Model], int | None]  # eviction order, lowest first; None: the model must stay


def any_model(model: Model) -> int | None:
    """Rank every model equally: any may be evicted."""
    return 0
