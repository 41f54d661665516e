"""Which words of a prompt a model was taught: what is unknown is named with its nearest, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import studio
from studio.errors import WeightsError
from studio_diffusion import vocabulary
from studio_diffusion.image import STARTER, ImageGenerator
from studio_diffusion.latent import NearestThing
from studio_diffusion.vocabulary import PLAIN, PLAIN_CHINESE, Vocabulary
from studio_video.video import WEIGHTS, VideoGenerator

KNOWN = Vocabulary(("dog", "red apple", "wolf", "woman", "butterfly"), ("running",), ("狗", "红苹果", "消防车"))


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("a griffin and two dogs", ("griffin",)),
        ("Three APPLES, 4 wolves; the women's butterflies!", ()),
        ("a dragon, another dragon", ("dragon",)),
        ("a red-nosed dog", ("red-nosed",)),
        ("running dogs on the grass at night", ()),
        ("草地上有两只狗和一个红苹果", ()),
        ("一只狮鹫在狗的左边", ("狮鹫",)),
        ("消防车", ()),
        ("cat和狗", ("cat",)),
        ("собака と犬", ("собака", "と", "犬")),
        ("12 + 3 = 15 …", ()),
    ],
)
def test_words_that_no_caption_had(text: str, unknown: tuple[str, ...]) -> None:
    assert KNOWN.unknown(text) == unknown


@given(
    known=st.lists(st.sampled_from(sorted(PLAIN | {"dog", "apples", "running", "wolves"})), max_size=8),
    other=st.lists(st.sampled_from(["griffin", "knight", "blorp"]), max_size=3, unique=True),
    order=st.randoms(use_true_random=False),
)
def test_exactly_the_unknown_are_named(known: list[str], other: list[str], order: object) -> None:
    words = [*known, *other]
    order.shuffle(words)  # type: ignore[attr-defined]
    assert set(KNOWN.unknown(" ".join(words))) == set(other)


@given(st.lists(st.sampled_from((*PLAIN_CHINESE, "狗", "红苹果", "消防车")), min_size=1, max_size=8))
def test_chinese_made_of_known_words_is_known(parts: list[str]) -> None:
    whole = Vocabulary((), (), ("狗", "红苹果", "消防车", *parts))
    assert whole.unknown("，".join(parts)) == ()
    assert KNOWN.unknown("，".join(parts)) == ()
    assert KNOWN.unknown("鲲" + "，".join(parts))[0] == "鲲"


def test_a_notice_names_five_and_the_nearest() -> None:
    assert vocabulary.notices(None, "griffin", lambda word: "dog") == ()
    assert vocabulary.notices(KNOWN, "a dog", lambda word: "dog") == ()
    (told,) = vocabulary.notices(KNOWN, "butterfli knight blorp one gnu emu yak", lambda word: "dog")
    assert told.startswith(
        "not in the model's training captions: “butterfli” (nearest: butterfly), “knight” (nearest: dog)"
    )
    assert told.endswith(", and 1 more")


@pytest.mark.parametrize("text", ["[]", "{", '{"things": ["a"], "words": [1], "chinese": []}', '{"things": "dog"}'])
def test_a_damaged_vocabulary_is_named(tmp_path: Path, text: str) -> None:
    assert vocabulary.load(tmp_path) is None
    (tmp_path / vocabulary.FILE).write_text(text, "utf-8")
    with pytest.raises(WeightsError, match=r"vocabulary\.json` is not "):
        vocabulary.load(tmp_path)


@pytest.mark.parametrize("folder", [STARTER, WEIGHTS])
def test_each_starter_ships_its_vocabulary(folder: Path) -> None:
    told = json.loads((folder / vocabulary.FILE).read_text("utf-8"))
    assert all(len(set(words)) == len(words) for words in told.values())
    known = vocabulary.load(folder)
    assert known is not None
    assert known.unknown("a dog, two cats and a red apple") == ()
    assert known.unknown("a xylograph") == ("xylograph",)


def test_the_starter_says_what_it_does_not_know(tmp_path: Path) -> None:
    with studio.Studio(home=tmp_path, device="cpu") as host:
        recipe = host.image("a lighthouse and an elephent", seed=0, steps=1, size="64x64").recipe
    assert recipe is not None
    (told,) = recipe.notices
    assert "“lighthouse” (nearest: light bulb)" in told
    assert "“elephent” (nearest: elephant)" in told


def test_the_starter_says_nothing_of_what_it_knows_in_either_language() -> None:
    generator = ImageGenerator()
    model = generator.load(studio.ModelRef(), "cpu", "float32")
    with torch.inference_mode():
        asked = {
            "two (red apples:1.2) BREAK on (grass:1.3)": "",
            "草地上有两只狗": "",
            "一只狮鹫": "“狮鹫” (nearest: lion)",
        }
        for prompt, told in asked.items():
            notices = generator.start(model, generator.Inputs.parse({"prompt": prompt}), studio.Rng(0)).notices
            assert bool(notices) == bool(told)
            assert told in " ".join(notices)


def test_the_video_starter_says_it_too() -> None:
    generator = VideoGenerator()
    model = generator.load(studio.ModelRef(), "cpu", "float32")
    with torch.inference_mode():
        for prompt, told in (("a dog bouncing", ()), ("a car sliding left", ("car",))):
            inputs = generator.Inputs.parse({"prompt": prompt, "steps": 1, "size": "64x64", "frames": 2})
            notices = generator.start(model, inputs, studio.Rng(0)).notices
            assert [f"“{word}”" in text for word, text in zip(told, notices, strict=True)] == [True] * len(told)


def test_a_thing_is_nearest_to_itself(tiny_folder: Path) -> None:
    model = ImageGenerator(tiny_folder).load(studio.ModelRef(), "cpu", "float32")
    assert model.vocabulary is None
    nearest = NearestThing(model.text_encoder, model.tokenizer, Vocabulary(("red apple", "octopus"), (), ()))
    assert nearest("octopus") == "octopus"
    assert nearest("red apple") == "red apple"
    with pytest.raises(ValueError, match="has no things"):
        model.nearest("octopus")
