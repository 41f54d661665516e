"""The generator `clip-label`: the softmax of CLIP's cosines; one clear error for labels that make no sense."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

import studio
from studio.errors import InputError
from studio_clip import model
from studio_clip.label import LabelGenerator

COLOURS = ["red", "green", "blue"]


def flat(colour: str) -> studio.Image:
    return studio.Image(PIL.Image.new("RGB", (40, 40), colour))


def test_it_gives_the_softmax_of_the_cosines(tmp_path: Path) -> None:
    images = [flat(COLOURS[i % 3]) for i in range(35)]
    clip = model.load()
    texts = clip.encode_text([f"a {each} square" for each in COLOURS])
    wanted = (clip.temperature * clip.encode_image([each.pil for each in images]) @ texts.T).softmax(-1).numpy()
    with studio.Studio(home=tmp_path, device="cpu") as host:
        made = host.generate("clip-label", images=images, labels=COLOURS, prompt="a {} square", top=2)
    told = json.loads(str(made))
    assert [len(each) for each in told] == [2] * 35
    for row, shares in zip(told, wanted, strict=True):
        order = np.argsort(-shares)[:2]
        assert [each["label"] for each in row] == [COLOURS[place] for place in order]
        np.testing.assert_allclose([each["share"] for each in row], shares[order], atol=2e-4)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"labels": ["a"]}, "labels"),
        ({"labels": ["a", " "]}, "a label is empty"),
        ({"labels": ["a", "b", "a"]}, "`a` occurs twice"),
        ({"labels": ["a", "b"], "prompt": "a picture"}, "must contain {} once"),
        ({"labels": ["a", "b"], "images": []}, "images"),
    ],
)
def test_bad_inputs(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        LabelGenerator.Inputs.parse({"images": [flat("red")], **given})
