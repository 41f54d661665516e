"""The text tower in both forms, and views of pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from studio_clip import convert, train_pairs

TEXTS = ["octopus", "", "a red apple", "一个红苹果", "red " * 60, "a", "apples and pears, don't you know", "cat", "dog"]


def test_open_clip_gives_the_same_embeddings(tokens: Any, tower: Any) -> None:
    model = train_pairs.build(tower).eval()
    ids = tokens(TEXTS, padding="max_length", truncation=True, max_length=48, return_tensors="pt").input_ids
    with torch.no_grad():
        theirs = tower(input_ids=ids).text_embeds
        ours = model.encode_text(ids)
    assert ours.shape == (len(TEXTS), 16)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_both_forms_of_the_text_tower_come_back(tower: Any) -> None:
    back = convert.from_open_clip(convert.to_open_clip(tower))
    wanted = tower.state_dict()
    assert back.keys() == wanted.keys()
    assert all(torch.equal(back[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("image", convert.TOWERS)
@pytest.mark.parametrize("which", train_pairs.LOCKS)
def test_what_is_locked_does_not_learn(tower: Any, image: str, which: str) -> None:
    model = train_pairs.build(tower, image)
    train_pairs.lock(model, which)
    learnt = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    visual = {name for name, _ in model.named_parameters() if name.startswith("visual.")}
    last = {"visual.proj"} if image == "vit" else {"visual.head.proj.weight"}
    text = {name for name, _ in model.named_parameters()} - visual - {"logit_scale"}
    assert text == convert.to_open_clip(tower).keys()
    pictures = last if which in ("image", "both") else visual
    assert learnt == {"logit_scale"} | pictures | (text if which in ("image", "none") else set())


def test_white_stays_white_in_every_view() -> None:
    made = train_pairs.augment(np.full((3, 128, 128, 3), 255, np.uint8), [0, 2, 2, 1], np.random.default_rng(0))
    assert made.shape == (4, 3, 64, 64)
    torch.testing.assert_close(made, torch.ones_like(made), rtol=0, atol=1e-5)


@given(st.integers(0, 99))
def test_views_are_their_pictures_moved_a_little(seed: int) -> None:
    """Colours stay, positions vary, and the same generator gives the same views."""
    pictures = np.full((2, 64, 64, 3), 255, np.uint8)
    pictures[0, 20:44, 20:44] = (255, 0, 0)
    pictures[1, 20:44, 20:44] = (0, 0, 255)
    red, blue = train_pairs.augment(pictures, [0, 1], np.random.default_rng(seed), 32)
    assert red.min() >= -1.001
    assert red.max() <= 1.001
    assert red[0].min() > 0.99  # red's own channel stays full
    assert blue[2].min() > 0.99
    assert red[1].min() < -0.9  # and the square is still in the picture
    again = train_pairs.augment(pictures, [0, 1], np.random.default_rng(seed), 32)
    assert torch.equal(again[0], red)
