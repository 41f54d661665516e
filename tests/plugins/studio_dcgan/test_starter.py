"""The weights that ship: small, whole, of 285 named things, and of the right colours."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from studio_dcgan import checkpoint
from studio_dcgan.dcgan import STARTER
from studio_dcgan.latents import truncated
from studio_dcgan.model import GeneratorNet


@pytest.fixture(scope="module")
def starter() -> tuple[GeneratorNet, tuple[str, ...]]:
    found = checkpoint.find(STARTER)
    return found.build("cpu", "float32"), found.names


def test_small_and_whole() -> None:
    assert STARTER.stat().st_size <= 8 << 20
    digest, name = (STARTER.parent / "SHA256SUMS").read_text().split()
    assert Path(name).name == STARTER.name
    assert hashlib.sha256(STARTER.read_bytes()).hexdigest() == digest


def test_it_has_285_things(starter: tuple[GeneratorNet, tuple[str, ...]]) -> None:
    _, names = starter
    assert len(names) == len(set(names)) == 285
    assert {"banana", "red apple", "lion", "octopus", "pizza"} <= set(names)


def drawn(starter: tuple[GeneratorNet, tuple[str, ...]], name: str) -> Tensor:
    """Eight pictures of a thing, (8, 64, 64, 3), from 0 to 255."""
    model, names = starter
    z = truncated(8, model.latent, 1.0, torch.Generator().manual_seed(0))
    return model.pixels(model.condition(z, torch.full((8,), names.index(name)))).float()


@pytest.mark.parametrize(
    ("name", "is_so"),
    [
        ("green apple", lambda r, g, b: g > r and g > b),
        ("red apple", lambda r, g, b: r > g + 30 and r > b + 30),
        ("banana", lambda r, g, b: r > b + 40 and g > b + 20),
        ("eggplant", lambda r, g, b: b > g and r > g),
        ("spouting whale", lambda r, g, b: b > r + 20),
        ("broccoli", lambda r, g, b: g > r and g > b),
    ],
)
def test_things_have_their_colours(
    starter: tuple[GeneratorNet, tuple[str, ...]], name: str, is_so: Callable[[float, float, float], bool]
) -> None:
    """The mean colour of what is not the white ground."""
    made = drawn(starter, name)
    thing = made[made.amin(-1) < 200]
    assert is_so(*thing.mean(0).tolist()), thing.mean(0)


def test_things_stand_on_white(starter: tuple[GeneratorNet, tuple[str, ...]]) -> None:
    made = torch.cat([drawn(starter, name) for name in ("lion", "pizza", "frog")])
    edge = torch.cat([made[:, [0, -1]].flatten(1, 2), made[:, :, [0, -1]].flatten(1, 2)], 1)
    assert edge.mean() > 235
    assert made[:, 24:40, 24:40].mean() < edge.mean() - 20
