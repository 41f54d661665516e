"""Prompts as embeddings: those of the pipeline itself for plain text; weights and long prompts are heard."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from studio.diffusion.stepping import PipelineModel
from studio_diffusion import embeds

from ...studio.diffusion import whole

SD, XL, FLUX = "StableDiffusionPipeline", "StableDiffusionXLPipeline", "FluxPipeline"


@pytest.fixture(scope="module")
def pipes() -> dict[str, Any]:
    return {name: whole.made(name) for name in (SD, XL, FLUX)}


@pytest.mark.parametrize("name", [SD, XL])
def test_plain_text_is_encoded_as_the_pipeline_does(pipes: dict[str, Any], name: str) -> None:
    pipe = pipes[name]
    made, notices = embeds.embeddings(PipelineModel(pipe, "cpu"), pipe, "a red boat", "a cat")
    with torch.no_grad():
        theirs = pipe.encode_prompt(
            prompt="a red boat", negative_prompt="a cat", device="cpu", num_images_per_prompt=1,
            do_classifier_free_guidance=True,
        )  # fmt: skip
    assert notices == ()
    for ours, stock in zip(made.values(), theirs, strict=True):
        assert torch.equal(ours, stock)


@pytest.mark.parametrize("name", [SD, XL])
def test_a_long_prompt_has_further_chunks(pipes: dict[str, Any], name: str) -> None:
    pipe = pipes[name]
    made, notices = embeds.embeddings(PipelineModel(pipe, "cpu"), pipe, "a red boat on the blue sea", "")
    length = pipe.tokenizer.model_max_length
    assert made["prompt_embeds"].shape[1] == made["negative_prompt_embeds"].shape[1] == 2 * length
    assert not notices
    assert not torch.equal(made["prompt_embeds"][:, :length], made["prompt_embeds"][:, length:])


def test_a_weight_moves_away_from_the_empty_text(pipes: dict[str, Any]) -> None:
    pipe = pipes[SD]
    model = PipelineModel(pipe, "cpu")
    plain, one, none = (
        embeds.embeddings(model, pipe, text, "")[0]["prompt_embeds"] for text in ("a red boat", "a (red:1.0) boat", "")
    )
    (heavy,) = (embeds.embeddings(model, pipe, text, "")[0]["prompt_embeds"] for text in ("a (red:1.5) boat",))
    assert torch.equal(plain, one)
    changed = (heavy != plain).any(-1)[0]
    assert changed.any()
    assert not changed[0]
    assert torch.allclose(heavy[0, changed] - none[0, changed], 1.5 * (plain - none)[0, changed], atol=1e-5)


def test_only_clip_encoders_are_meant(pipes: dict[str, Any]) -> None:
    assert embeds.needed(pipes[SD], ["a (red:1.5) boat"])
    assert not embeds.needed(pipes[SD], ["a red boat", ""])
    assert not embeds.needed(pipes[FLUX], ["a (red:1.5) boat"])
