"""Products are short where the device multiplies short numbers quickly, and nowhere else."""

from __future__ import annotations

import pytest
import torch

from studio.devices.precision import autocast, fast_dtype


@pytest.mark.parametrize("fast", [True, False])
def test_a_processor_computes_in_what_it_multiplies_quickly(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: fast)
    expected = torch.bfloat16 if fast else torch.float32
    assert getattr(torch, fast_dtype("cpu")) == expected
    layer, x = torch.nn.Linear(8, 8), torch.ones(2, 8)
    with autocast(torch.device("cpu")):
        assert layer(x).dtype == expected
    assert layer(x).dtype == torch.float32
