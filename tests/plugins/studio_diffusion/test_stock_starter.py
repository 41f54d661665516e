"""The starter's weights under another scheduler are a model of diffusers like any other, with real numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import studio
from studio.engine import Engine, Request
from studio.recipe import PluginRef
from studio_diffusion.image import STARTER, ImageGenerator, is_own

from ...studio.diffusion.whole import diffusers


@pytest.fixture(scope="module")
def pipe() -> Any:
    made = diffusers.StableDiffusionPipeline.from_pretrained(STARTER, dtype=torch.float32)
    made.scheduler = diffusers.UniPCMultistepScheduler.from_config(made.scheduler.config)
    made.set_progress_bar_config(disable=True)
    return made


def test_pictures_equal_those_of_the_pipeline(pipe: Any, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    assert is_own(STARTER)
    assert not is_own(tmp_path)
    generator = ImageGenerator(tmp_path)
    asked = [("a red apple", 5, 4.0), ("an octopus", 4, 6.0)]
    with Engine("cpu", "float32") as engine:
        tickets = [
            engine.submit(
                Request.of(
                    generator,
                    generator.Inputs.parse({"prompt": prompt, "steps": steps, "guidance": guidance, "size": "128x128"}),
                    7 + i,
                    PluginRef(name="test", version="1"),
                )
            )
            for i, (prompt, steps, guidance) in enumerate(asked)
        ]
        made = [ticket.result(300) for ticket in tickets]
    for i, (prompt, steps, guidance) in enumerate(asked):
        stock = pipe(
            prompt, num_inference_steps=steps, guidance_scale=guidance, width=128, height=128,
            generator=torch.Generator().manual_seed(7 + i),
        ).images[0]  # fmt: skip
        assert isinstance(made[i], studio.Image)
        assert np.abs(made[i].samples().astype(int) - np.asarray(stock).astype(int)).max() <= 1
