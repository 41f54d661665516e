"""Shipped workflows on the fake GPU, which raises where tensors of two devices meet."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

import studio
from studio.testing.fake_gpu import FakeGpu
from studio.workflow.shipped import shipped

PICTURE = studio.Image(Image.new("RGB", (64, 64), "red"))
INPUTS: dict[str, dict[str, object]] = {
    "animate": {"prompt": "a horse", "frames": 4, "steps": 2},
    "best": {"prompt": "a cat", "n": 2, "keep": 1, "steps": 2},
    "compare": {"prompt": "a cat"},
    "illustrate": {"idea": "a cat", "n": 2, "steps": 2},
    "search": {"text": "something red", "pictures": [PICTURE, PICTURE], "best": 1},
    "storyboard": {"theme": "a cat", "scenes": 2, "steps": 2},
    "variations": {"picture": PICTURE, "strengths": [0.3, 0.9], "steps": 4, "words": ["apple", "banana"]},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(INPUTS))
def test_a_shipped_workflow_runs_on_a_gpu(name: str, tmp_path: Path) -> None:
    with FakeGpu.installed(), studio.Studio(home=tmp_path / "home", device="gpu:0") as host:
        result = host.run(name, **INPUTS[name])
    assert not result.failed


def test_all_shipped_workflows_are_here() -> None:
    assert {*shipped()} == {*INPUTS}
