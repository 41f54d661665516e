"""The average of weights against a slow one in float64."""

from __future__ import annotations

import pytest
import torch

from studio.training.ema import Ema


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_equals_a_slow_average(decay: float) -> None:
    rng = torch.Generator().manual_seed(0)
    model = torch.nn.Linear(3, 2)
    ema = Ema(model, decay)
    slow = [p.detach().double() for p in model.parameters()]
    for update in range(1, 40):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=rng))
        ema.update(model)
        keep = min(decay, (1 + update) / (10 + update))
        slow = [keep * s + (1 - keep) * p.detach().double() for s, p in zip(slow, model.parameters(), strict=True)]
    for made, wanted in zip(ema.module.parameters(), slow, strict=True):
        torch.testing.assert_close(made.double(), wanted, rtol=1e-5, atol=1e-6)


def test_copies_buffers_and_leaves_the_model_alone() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    ema = Ema(model)
    model(torch.randn(8, 3))  # moves the running statistics
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ema.update(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(ema.module.buffers(), model.buffers(), strict=True))
    assert not any(parameter.requires_grad for parameter in ema.module.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not ema.module.training
    assert model.training
