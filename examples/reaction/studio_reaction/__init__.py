"""A multi-step plugin for any device: the Gray-Scott model. It shows states, batches, previews and notices.

Chemical u is fed, v is removed, and v converts u to v (Pearson, "Complex Patterns in a Simple System", Science 261,
1993). A step is `SUBSTEPS` steps of Euler's method with step size 1, for all requests of the batch.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import studio

if TYPE_CHECKING:
    from torch import Tensor

studio_api = 1
SUBSTEPS = 50
_DU, _DV = 0.16, 0.08  # how fast each spreads


@dataclass(frozen=True, kw_only=True, eq=False)
class Dish(studio.State):
    """`x` is (2, H, W), float32 on the CPU: u and v, each from 0 to 1."""

    x: Tensor
    feed: float
    kill: float


class Reaction(studio.Generator):
    """Grow spots and stripes by two chemicals that react."""

    name = "reaction"
    output = studio.Image
    max_batch = 16

    class Inputs(studio.Inputs):
        size: int = studio.field(96, ge=16, le=1024, multiple_of=2, help="width and height in pixels")
        steps: int = studio.field(60, ge=1, le=1000, help=f"steps, each {SUBSTEPS} of the equation")
        feed: float = studio.field(0.037, ge=0.01, le=0.1, help="how fast u comes in; 0.03 to 0.06 makes patterns")
        kill: float = studio.field(0.06, ge=0.03, le=0.08, help="how fast v goes; 0.058 to 0.065 makes patterns")

    def load(self, ref: studio.ModelRef, device: str, dtype: str) -> Any:
        """The kernel of the discrete Laplacian, (2, 1, 3, 3): one for each chemical, times how fast it spreads."""
        import torch

        laplacian = torch.tensor([[0.25, 0.5, 0.25], [0.5, -3.0, 0.5], [0.25, 0.5, 0.25]])
        return (laplacian * torch.tensor([_DU, _DV])[:, None, None])[:, None].to(device)

    def start(self, model: Any, inputs: Any, rng: studio.Rng) -> Dish:
        """Fill the dish with u, and put drops of v where the seed says. Drawn on the CPU, whatever the device."""
        import torch

        size = inputs.size
        x = torch.stack([torch.ones(size, size), torch.zeros(size, size)])
        for top, left in torch.randint(0, size - 8, (max(3, size // 12), 2), generator=rng.torch).tolist():
            x[:, top : top + 8, left : left + 8] = torch.tensor([0.5, 0.25])[:, None, None]
        x[1] += 0.02 * torch.rand(size, size, generator=rng.torch)
        grows = 0.03 <= inputs.feed <= 0.06 and 0.058 <= inputs.kill <= 0.065
        notices = () if grows else (f"feed {inputs.feed:g} and kill {inputs.kill:g} may leave an empty picture",)
        return Dish(steps=inputs.steps, notices=notices, x=x, feed=inputs.feed, kill=inputs.kill)

    def step(self, model: Any, states: Sequence[Dish]) -> list[Dish]:
        """All dishes at once, each with its own feed and kill. New tensors are made; the given ones stay."""
        import torch
        from torch.nn.functional import conv2d, pad

        x = torch.stack([state.x for state in states]).to(model.device)  # (B, 2, H, W)
        feed, kill = torch.tensor([(state.feed, state.kill) for state in states], device=x.device).T[:, :, None, None]
        for _ in range(SUBSTEPS):
            spread = conv2d(pad(x, (1, 1, 1, 1), mode="circular"), model, groups=2)  # (B, 2, H, W)
            u, v = x.unbind(1)  # (B, H, W) each
            made = u * v * v
            x = x + spread + torch.stack([feed * (1 - u) - made, made - (feed + kill) * v], dim=1)
        return [replace(a, position=a.position + 1, x=row.clone()) for a, row in zip(states, x.cpu(), strict=True)]

    def finish(self, model: Any, state: Dish) -> studio.Image:
        """u as grey values: white where it is 1."""
        return studio.Image.from_array((state.x[0] * 255).round().clamp(0, 255).byte().numpy())

    def preview(self, model: Any, state: Dish) -> studio.Image:
        """What stands so far costs nothing to show."""
        return self.finish(model, state)

    def batch_key(self, state: Dish) -> Hashable:
        """Dishes of one size share steps, whatever their feed, kill and position."""
        return tuple(state.x.shape)


@studio.hookimpl
def studio_generators() -> list[studio.Generator]:
    return [Reaction()]
