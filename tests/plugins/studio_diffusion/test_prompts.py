"""Prompts with weights and breaks, at work on the token states of those words alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import studio
from studio.diffusion.chunks import MOST
from studio.errors import InputError
from studio_diffusion.image import ImageGenerator
from studio_diffusion.latent import LatentDiffusion
from studio_video.video import VideoGenerator


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> LatentDiffusion:
    return LatentDiffusion(tiny_folder, "cpu", torch.float32)


@torch.inference_mode()
def test_a_weight_moves_its_words_alone(model: LatentDiffusion) -> None:
    """Their distance from the empty text's states is multiplied; 1 changes nothing, and neither does where one cuts."""
    plain, empty = model.states("a red apple")[0], model.states("")[0]
    assert torch.equal(model.states("a (red:1) apple")[0], plain)
    _, weights, _ = model.tokenize("a (red:1.5) apple")
    assert set(weights) == {1.0, 1.5}
    weighed = model.states("a (red:1.5) apple")[0]
    share = torch.tensor(weights)[:, None]
    torch.testing.assert_close(weighed - empty, share * (plain - empty), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_a_long_prompt_counts_whole_in_further_chunks(model: LatentDiffusion) -> None:
    length = model.tokenizer.model_max_length
    one, other = "apple " * (length - 2), "(octopus:1.5)"
    ids, weights, cut = model.tokenize(one + other)
    assert (len(ids), cut) == (2 * length, "")
    assert len(weights) == len(ids)
    assert ids[:length] == model.tokenize(one)[0]
    assert ids[length:] == model.tokenize("octopus")[0]
    states = model.states("a red apple BREAK octopus")[0]
    assert torch.equal(states, torch.cat([model.states("a red apple")[0], model.states("octopus")[0]]))
    ids, _, cut = model.tokenize(one * MOST + other)
    assert (len(ids), cut) == (MOST * length, "octopus")


@torch.inference_mode()
def test_both_prompts_have_as_many_chunks_and_notices_are_told(model: LatentDiffusion, tiny_folder: Path) -> None:
    generator = ImageGenerator(tiny_folder)
    inputs = generator.Inputs.parse({"prompt": "a BREAK b <lora:x:1>", "negative": "c [d|e]", "size": "64x64"})
    state = generator.start(model, inputs, studio.Rng(1))
    assert state.text.shape == state.negative.shape == (2 * model.tokenizer.model_max_length, 32)
    assert torch.equal(state.negative[len(state.negative) // 2 :], model.states("")[0])
    assert len(state.notices) == 2
    short = generator.start(model, generator.Inputs.parse({"prompt": "a", "size": "64x64"}), studio.Rng(1))
    assert generator.batch_key(state) != generator.batch_key(short)


@pytest.mark.parametrize("prompt", ["<lora:x:1>", "()", "[]", "BREAK"])
def test_a_prompt_without_words_is_refused(prompt: str) -> None:
    for generator in (ImageGenerator, VideoGenerator):
        with pytest.raises(InputError, match="brackets and tags only"):
            generator.Inputs.parse({"prompt": prompt})


def test_too_much_weight_is_refused() -> None:
    for name in ("prompt", "negative"):
        with pytest.raises(InputError, match="`red` the weight 9, but weights are from 0 to 3"):
            ImageGenerator.Inputs.parse({"prompt": "x"} | {name: "a (red:9) apple"})
