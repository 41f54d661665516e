"""Weights of words: read as written, and at work on the token states of those words alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from studio.errors import InputError
from studio_diffusion.image import ImageGenerator
from studio_diffusion.latent import LatentDiffusion
from studio_diffusion.prompts import pieces

WORDS = st.text(st.characters(blacklist_characters="():", blacklist_categories=["Cs"]), min_size=1, max_size=12)


@given(st.lists(st.tuples(WORDS, WORDS, st.integers(0, 300)), max_size=4), WORDS)
def test_pieces_are_what_was_written(parts: list[tuple[str, str, int]], last: str) -> None:
    prompt = "".join(f"{before}({words}:{weight / 100})" for before, words, weight in parts) + last
    wanted = [each for before, words, weight in parts for each in ((before, 1.0), (words, weight / 100))]
    assert pieces(prompt) == [*wanted, (last, 1.0)]


@pytest.mark.parametrize("prompt", ["a (small) apple", "at 10:30 (or later)", "(a:b)", "(:1.3)", "(red:-1)", "((", ""])
def test_other_parentheses_are_text(prompt: str) -> None:
    assert pieces(prompt) == ([(prompt, 1.0)] if prompt else [])


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
def test_what_is_cut_is_told_with_weights_too(model: LatentDiffusion) -> None:
    ids, weights, cut = model.tokenize("apple " * 12 + "(zebra apple:1.2) octopus")
    assert len(ids) == len(weights) == model.tokenizer.model_max_length
    assert "octopus" in cut


def test_too_much_weight_is_refused() -> None:
    for name in ("prompt", "negative"):
        with pytest.raises(InputError, match="`red` the weight 9, but weights are from 0 to 3"):
            ImageGenerator.Inputs.parse({"prompt": "x"} | {name: "a (red:9) apple"})
