"""benchmarks/scene_judge.py: its rules are right of pictures whose truth is known; things are the encoder's part."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.scenes import grounds, held_out, picture, scene, things
from recipes.scenes.scene import COLOURS, GROUNDS, Part, Scene

SEEDS = st.integers(0, 2**32)


@pytest.fixture(scope="module")
def judge() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
        yield importlib.import_module("scene_judge")


@pytest.fixture(scope="module")
def things_of_light_and_shade() -> picture.Sprites:
    """A disc with a lighter and a darker part for every thing."""
    made = PIL.Image.new("RGBA", (128, 128), (0, 0, 0, 0))
    pen = PIL.ImageDraw.Draw(made)
    pen.ellipse((1, 1, 126, 126), fill=(160, 100, 60, 255))
    pen.ellipse((30, 14, 90, 60), fill=(220, 160, 110, 255))
    pen.ellipse((50, 80, 110, 116), fill=(90, 50, 20, 255))
    return picture.Sprites(dict.fromkeys((thing.label for thing in things.read()), made))


@given(seed=SEEDS, count=st.integers(1, 4))
def test_things_are_counted(
    judge: ModuleType, things_of_light_and_shade: picture.Sprites, seed: int, count: int
) -> None:
    made = picture.draw(Scene((Part("cat", "", count),)), things_of_light_and_shade, 128, np.random.default_rng(seed))
    assert judge.count(made.pixels) == count


@given(seed=SEEDS, colour=st.sampled_from(COLOURS))
def test_colours_are_told(
    judge: ModuleType, things_of_light_and_shade: picture.Sprites, seed: int, colour: str
) -> None:
    made = picture.draw(Scene((Part("cat", colour),)), things_of_light_and_shade, 128, np.random.default_rng(seed))
    assert judge.colour(made.pixels, judge.regions(made.pixels)[0]) == colour


@given(seed=SEEDS, relation=st.sampled_from(held_out.RELATIONS[:4]))
def test_places_are_told(
    judge: ModuleType, things_of_light_and_shade: picture.Sprites, seed: int, relation: str
) -> None:
    asked = Scene((Part("cat", "red"), Part("dog", "blue")), relation)
    pixels = picture.draw(asked, things_of_light_and_shade, 128, np.random.default_rng(seed)).pixels
    one, other = judge.regions(pixels)[:2]
    a, b = (one, other) if judge.colour(pixels, one) == "red" else (other, one)
    assert judge.placed(a, b, relation)
    assert not any(judge.placed(a, b, each) for each in held_out.RELATIONS[:4] if each != relation)


def test_an_empty_picture_has_nothing(judge: ModuleType) -> None:
    white = np.full((128, 128, 3), 255, np.uint8)
    assert judge.regions(white) == []
    assert judge.count(white) == 0


def test_components_are_the_connected_parts(judge: ModuleType) -> None:
    rows = ["##..#", "...#.", "#....", "#...#"]
    mask = np.array([[cell == "#" for cell in row] for row in rows])
    labels = judge.components(mask)
    assert len(np.unique(labels[mask])) == 4  # corners touch
    assert labels[0, 4] == labels[1, 3]
    assert (labels[~mask] == 0).all()


def test_grounds_are_unlike_each_other(judge: ModuleType) -> None:
    """Each ground's border is nearer to another drawing of it than to any of another ground."""
    first, second = (
        {name: judge.ground_cells(grounds.draw(name, 128, np.random.default_rng(seed))) for name in ("", *GROUNDS)}
        for seed in (1, 2)
    )
    for name, cells in first.items():
        assert min(second, key=lambda other: float(np.abs(second[other] - cells).sum())) == name


def test_the_judging_sets_are_held_out() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
        asked = importlib.import_module("scene_prompts")
    rules = {"colour": "colour", "two": "pair", "attribution": "pair", "position": "relation", "ground": "ground"}
    for skill in asked.SKILLS:
        scenes = asked.prompts(skill, 50)
        assert len(set(scenes)) == 50
        assert scenes == asked.prompts(skill, 50)
        for each in scenes:
            kept = {fact.partition(":")[0] for fact in each.held_out()}
            assert rules.get(skill) in (None, *kept)
            assert all(part.thing not in scene.FIXED or not part.colour for part in each.parts)
    assert [each.parts[0].count for each in asked.prompts("count", 8)] == [1, 2, 3, 4] * 2
