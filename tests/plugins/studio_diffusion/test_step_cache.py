"""The step cache: which steps ask the net, and that it lives in the state."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import studio
from studio.engine.checkpoints.encoding import decode_state, encode_state
from studio_diffusion.image import ImageGenerator
from studio_diffusion.step_cache import runs_model


@given(steps=st.integers(1, 1000))
def test_the_first_and_the_last_step_ask_and_never_two_in_a_row_do_not(steps: int) -> None:
    asked = [runs_model(position, steps) for position in range(steps)]
    assert all(asked[: max(2, round(0.2 * steps))])
    assert all(one or other for one, other in pairwise(asked))
    assert asked[-1]
    if steps >= 20:
        assert steps / sum(asked) >= 1.5


@pytest.fixture(scope="module")
def generator(tiny_folder: Path) -> ImageGenerator:
    return ImageGenerator(tiny_folder)


@torch.inference_mode()
def test_it_asks_less_in_any_company_and_goes_on_from_its_state(
    generator: ImageGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a plain request it takes its place only where it asks; saved and read at each step, it ends the same."""
    model = generator.load(studio.ModelRef(), "cpu", "float32")
    widths: list[int] = []
    forward = type(model.unet).forward
    monkeypatch.setattr(
        type(model.unet), "forward", lambda self, x, *a, **k: widths.append(len(x)) or forward(self, x, *a, **k)
    )

    def start(seed: int, **more: Any) -> Any:
        asked = {"prompt": "octopus", "size": "64x64", "steps": 12, **more}
        return generator.start(model, generator.Inputs.parse(asked), studio.Rng(seed))

    first = alone = start(1, cache=True)
    while not alone.done:
        (alone,) = generator.step(model, [alone])
    asked = [runs_model(position, 12) for position in range(12)]
    assert widths == [2] * sum(asked)

    widths.clear()
    cached, plain = start(1, cache=True), start(2)
    assert generator.batch_key(cached) == generator.batch_key(plain)
    while not cached.done:
        fields, tensors = encode_state(cached)
        cached = decode_state(json.loads(json.dumps(fields)), tensors, first, "cpu")
        cached, plain = generator.step(model, [cached, plain])
    assert widths == [4 if each else 2 for each in asked]
    torch.testing.assert_close(cached.x, alone.x, rtol=1e-3, atol=1e-3)
