"""Gradients cached chunk by chunk are those of the whole batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from studio_clip import contrast


class Towers(torch.nn.Module):
    """Two small encoders in float64 and a temperature."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.image = torch.nn.Sequential(
            torch.nn.Linear(5, 7), torch.nn.Dropout(dropout), torch.nn.Tanh(), torch.nn.Linear(7, 4)
        ).double()
        self.text = torch.nn.Linear(3, 4).double()
        self.log_scale = torch.nn.Parameter(torch.tensor(1.5, dtype=torch.float64))


def made(towers: Towers, inputs: list[Tensor], same: Tensor, chunk: int) -> tuple[Tensor, dict[str, Tensor]]:
    encoders = [lambda x: F.normalize(towers.image(x), dim=-1), lambda x: F.normalize(towers.text(x), dim=-1)]
    towers.zero_grad()
    value, _ = contrast.backward(
        encoders, inputs, lambda i, t: contrast.loss(i, t, towers.log_scale, same), chunk
    )  # fmt: skip
    return value, {name: p.grad.clone() for name, p in towers.named_parameters() if p.grad is not None}


@settings(max_examples=30)
@given(batch=st.integers(2, 9), chunk=st.integers(1, 10), seed=st.integers(0, 99), repeated=st.booleans())
def test_cached_gradients_are_the_plain_ones(batch: int, chunk: int, seed: int, repeated: bool) -> None:
    rng = torch.Generator().manual_seed(seed)
    towers = Towers()
    inputs = [torch.randn(batch, width, generator=rng, dtype=torch.float64) for width in (5, 3)]
    same = torch.eye(batch, dtype=torch.bool)
    if repeated:
        same[0, 1] = same[1, 0] = True
    plain, whole = made(towers, inputs, same, batch)
    cached, parts = made(towers, inputs, same, chunk)
    torch.testing.assert_close(cached, plain)
    assert parts.keys() == whole.keys() == dict(towers.named_parameters()).keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-9, atol=1e-12)


def test_both_passes_drop_the_same_units() -> None:
    """The slow reference makes every chunk once, with a graph, in the same order."""
    torch.manual_seed(0)
    towers = Towers(dropout=0.5)
    inputs = [torch.randn(6, width, dtype=torch.float64) for width in (5, 3)]
    same = torch.eye(6, dtype=torch.bool)
    torch.manual_seed(1)
    _, cached = made(towers, inputs, same, 2)
    after = torch.get_rng_state()
    torch.manual_seed(1)
    towers.zero_grad()
    image = torch.cat([F.normalize(towers.image(rows), dim=-1) for rows in inputs[0].split(2)])
    text = F.normalize(towers.text(inputs[1]), dim=-1)
    contrast.loss(image, text, towers.log_scale, same)[0].backward()
    for name, parameter in towers.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(cached[name], parameter.grad)
    assert torch.equal(after, torch.get_rng_state()), "the next step draws what it would have drawn"


def test_a_chunk_is_all_that_holds_a_graph() -> None:
    widths = []

    def encode(rows: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            widths.append(len(rows))
        return rows * weight

    weight = torch.nn.Parameter(torch.ones(4))
    inputs = [torch.randn(7, 4)]
    contrast.backward([encode], inputs, lambda made: (made.square().sum(), made.mean()), 3)
    assert widths == [3, 3, 1]
    torch.testing.assert_close(weight.grad, 2 * inputs[0].square().sum(0))


@given(st.integers(0, 99))
def test_the_loss_is_its_definition(seed: int) -> None:
    """Row by row, without matrices; an equal text of another pair is left out."""
    rng = torch.Generator().manual_seed(seed)
    image, text = (F.normalize(torch.randn(4, 3, generator=rng), dim=-1) for _ in range(2))
    text[3] = text[1]
    same = (text[:, None] == text).all(-1)
    value, accuracy = contrast.loss(image, text, torch.tensor(2.0), same)
    scale, total, found = torch.tensor(2.0).exp(), torch.zeros(()), 0
    for i in range(4):
        others = [j for j in range(4) if j == i or not same[i, j]]
        forth = torch.stack([scale * image[i] @ text[j] for j in others])
        back = torch.stack([scale * image[j] @ text[i] for j in others])
        total += (forth.logsumexp(0) + back.logsumexp(0)) / 2 - scale * image[i] @ text[i]
        found += int(others[int(forth.argmax())] == i)
    torch.testing.assert_close(value, total / 4)
    assert float(accuracy) == found / 4


def test_a_perfect_match_has_no_loss_and_a_shuffled_one_has() -> None:
    one: Any = torch.eye(4)
    same = torch.eye(4, dtype=torch.bool)
    assert float(contrast.loss(one, one, torch.tensor(4.0), same)[0]) == pytest.approx(0, abs=1e-6)
    assert float(contrast.loss(one, one.roll(1, 0), torch.tensor(4.0), same)[0]) > 40
