"""DiffAugment, each part against a slow reference or its property, and its gradient."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from studio_dcgan import augment


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(seed=st.integers(0, 99))
def test_a_translation_is_a_window_of_the_padded_picture(seed: int) -> None:
    x = torch.arange(1.0, 2 * 2 * 16 * 24 + 1).reshape(2, 2, 16, 24)
    made = augment.translate(x, rng(seed))
    for before, after in zip(x, made, strict=True):
        windows = (
            torch.equal(after, torch.nn.functional.pad(before, (9, 9, 9, 9))[:, 9 + y : 25 + y, 9 + x : 33 + x])
            for y in range(-2, 3)
            for x in range(-3, 4)
        )
        assert any(windows)


@given(seed=st.integers(0, 99))
def test_a_cutout_is_one_square_of_at_most_half_the_side(seed: int) -> None:
    holes = augment.cutout(torch.ones(3, 2, 32, 32), rng(seed)) == 0
    assert (holes[:, :1] == holes).all()
    for hole in holes[:, 0]:
        rows, columns = hole.any(1).nonzero(), hole.any(0).nonzero()
        assert hole.sum() == len(rows) * len(columns)
        assert 0 < len(rows) <= 16
        assert 0 < len(columns) <= 16


@given(seed=st.integers(0, 99))
def test_a_colour_keeps_edges_where_they_are(seed: int) -> None:
    """A grey picture of two halves: each half stays even and grey, and their order with it."""
    x = torch.full((4, 3, 8, 8), -0.5)
    x[..., 4:] = 0.5
    made = augment.colour(x, rng(seed))
    assert (made - made[:, :1, :1]).abs().amax((1, 2))[:, [0, 7]].max() < 1e-6
    contrast = (made[:, 0, 0, 7] - made[:, 0, 0, 0]).tolist()
    assert all(0.5 - 1e-5 <= each <= 1.5 + 1e-5 for each in contrast)
    assert made.mean((1, 2, 3)).abs().max() <= 0.5 + 1e-5


def test_pictures_are_changed_each_by_itself_and_by_the_seed_alone() -> None:
    x = torch.rand(1, 3, 32, 32, generator=rng(0)).repeat(4, 1, 1, 1)
    made = augment.augment(x, rng(1))
    assert torch.equal(made, augment.augment(x, rng(1)))
    assert len({each.sum().item() for each in made}) == 4


def test_gradients_pass() -> None:
    x = torch.rand(2, 3, 12, 12, dtype=torch.float64, generator=rng(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: augment.augment(x, rng(3)), x)
