"""recipes/scenes: what is held out is in no scene, captions tell what pictures show, and pictures show it."""

from __future__ import annotations

import random
from zlib import crc32

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.scenes import captions, grounds, held_out, picture, scene, sprites, things
from recipes.scenes.scene import Part, Scene

SEEDS = st.integers(0, 2**32)
LABELS = [thing.label for thing in things.read()]
CHINESE = [name for thing in things.read() for name in thing.chinese]


def disc(colour: tuple[int, int, int]) -> PIL.Image.Image:
    made = PIL.Image.new("RGBA", (128, 128), (0, 0, 0, 0))
    PIL.ImageDraw.Draw(made).ellipse((2, 2, 125, 125), fill=(*colour, 255))
    return made


@pytest.fixture(scope="module")
def discs() -> picture.Sprites:
    """A disc of one hue for every thing."""
    return picture.Sprites(dict.fromkeys(LABELS, disc((200, 90, 60))))


@given(seed=SEEDS)
def test_no_scene_has_what_is_kept_for_judging(seed: int) -> None:
    """The rules, written out once more from a scene's parts alone."""
    drawn = scene.draw(random.Random(seed))
    for part in drawn.parts:
        assert not part.colour or crc32(f"{part.thing}|{part.colour}".encode()) % 5
        assert part.count == 1 or crc32(f"{part.count} {part.thing}".encode()) % 5
        assert not drawn.ground or crc32(f"{part.thing} @ {drawn.ground}".encode()) % 5
        assert 1 <= part.count <= 5
    if len(drawn.parts) == 2:
        a, b = (part.thing for part in drawn.parts)
        assert a != b
        assert crc32("|".join(sorted((a, b))).encode()) % 4
        assert crc32(f"{a} {drawn.relation} {b}".encode()) % 5
        turned = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
        if drawn.relation in turned:
            assert crc32(f"{b} {turned[drawn.relation]} {a}".encode()) % 5


def test_each_rule_keeps_its_part() -> None:
    facts = {
        "colour": [f"{thing}|{colour}" for thing in LABELS for colour in scene.COLOURS],
        "pair": ["|".join(sorted((a, b))) for a in LABELS[:60] for b in LABELS[60:120]],
        "relation": [f"{a} {way} {b}" for a in LABELS[:20] for b in LABELS[:20] for way in held_out.RELATIONS],
    }
    for rule, texts in facts.items():
        kept = np.mean([held_out.is_held_out(f"{rule}:{text}") for text in texts])
        assert kept == pytest.approx(1 / held_out.ONE_IN[rule], abs=0.03)


def test_a_held_out_scene_says_by_which_fact() -> None:
    asked = Scene((Part("red apple", "green", 3),), ground="grass")
    facts = ["colour:red apple|green", "count:3 red apple", "ground:red apple @ grass"]
    assert list(asked.facts()) == facts
    assert asked.held_out() == [fact for fact in facts if held_out.is_held_out(fact)]


@given(seed=SEEDS)
def test_captions_tell_the_scene(seed: int) -> None:
    rng = random.Random(seed)
    drawn = scene.draw(rng)
    plain = captions.english(drawn, rng, plain=True)
    by_label = {thing.label: thing for thing in things.read()}
    for part in drawn.parts:
        noun = by_label[part.thing].english[0]
        assert (noun.singular if part.count == 1 else noun.plural) in plain
        assert part.colour in plain
        assert part.count == 1 or captions.NUMBERS[part.count] in plain
    told = captions.chinese(drawn, rng, plain=True)
    for part in drawn.parts:
        assert by_label[part.thing].chinese[0] in told
        assert captions.COLOURS.get(part.colour, "") in told
    for text in (plain, told, captions.caption(drawn, rng)):
        assert text.strip() == text
        assert "{" not in text


@pytest.mark.parametrize(
    ("asked", "english", "chinese"),
    [
        (Scene((Part("dog", "", 2),), ground="grass"), "two dogs on grass", "草地上有两只狗"),
        (Scene((Part("octopus", "orange"),)), "an orange octopus", "一只橙色的章鱼"),
        (Scene((Part("unicorn"),), ground="red background"), "a unicorn on a red background", "一只独角兽，红色背景"),
        (Scene((Part("cat"), Part("chair")), "on"), "a cat on a chair", "一只猫在一把椅子上"),
        (Scene((Part("mouse", "", 3), Part("automobile", "red")), "left of", said=False), "three mice and a red car",
         "三只老鼠和一辆红色的汽车"),
    ],
)  # fmt: skip
def test_plain_captions(asked: Scene, english: str, chinese: str) -> None:
    assert captions.english(asked, random.Random(0), plain=True) == english
    assert captions.chinese(asked, random.Random(0), plain=True) == chinese


def test_captions_have_many_wordings() -> None:
    asked = Scene((Part("cat", "red"), Part("dog", "", 2)), "above", ground="grass")
    rng = random.Random(0)
    assert len({captions.english(asked, rng) for _ in range(300)}) > 150
    assert len({captions.chinese(asked, rng) for _ in range(300)}) > 80


@given(seed=SEEDS)
def test_things_stand_where_the_relation_says(discs: picture.Sprites, seed: int) -> None:
    rng = np.random.default_rng(seed)
    relation = held_out.RELATIONS[seed % len(held_out.RELATIONS)]
    made = picture.draw(Scene((Part("cat"), Part("dog")), relation), discs, 64, rng)
    box = {each.part.thing: each.box for each in made.placed}
    (ax, ay), (bx, by) = (
        ((left + right) / 2, (top + bottom) / 2) for left, top, right, bottom in (box["cat"], box["dog"])
    )
    right = {"left of": ax < bx, "right of": ax > bx, "above": ay < by, "below": ay > by, "on": ay < by}
    assert right.get(relation, made.placed[-1].part.thing == "cat")  # what is in front is drawn last


@given(seed=SEEDS, count=st.integers(1, 5))
def test_counted_things_stand_apart(discs: picture.Sprites, seed: int, count: int) -> None:
    made = picture.draw(Scene((Part("cat", "", count),)), discs, 64, np.random.default_rng(seed))
    boxes = [each.box for each in made.placed]
    assert len(boxes) == count
    for at, a in enumerate(boxes):
        assert all(-0.05 <= value <= 1.05 for value in a)
        for b in boxes[:at]:
            assert min(a[2], b[2]) - max(a[0], b[0]) < 0.01 or min(a[3], b[3]) - max(a[1], b[1]) < 0.01


@pytest.mark.parametrize("ground", ["", "blue background", "grass"])
def test_one_thing_of_any_size_is_within_the_picture(ground: str) -> None:
    for seed in range(400):
        (placed,) = picture.place(Scene((Part(LABELS[0]),), ground=ground), np.random.default_rng(seed))
        assert all(0 <= side <= 1 for side in placed.box)


@pytest.mark.parametrize("colour", scene.COLOURS)
def test_a_tint_has_the_colour_in_its_middle(colour: str) -> None:
    """A sprite of light, shade and a grey eye: the usual pixel becomes the colour, light stays lighter than shade."""
    own = np.asarray(disc((180, 120, 40))).copy()
    own[:40, :, :3] = (240, 180, 90)
    own[90:, :, :3] = (90, 50, 10)
    made = np.asarray(sprites.tint(PIL.Image.fromarray(own), colour)).astype(int)
    assert np.abs(made[64, 64, :3] - grounds.RGB[colour]).max() <= 3
    assert made[20, 64, :3].sum() > made[64, 64, :3].sum() > made[110, 64, :3].sum()
    assert (made[..., 3] == own[..., 3]).all()


@given(seed=SEEDS, size=st.sampled_from([32, 64, 128]))
def test_grounds_are_pictures_of_any_size(seed: int, size: int) -> None:
    for ground in ("", "red background", *scene.GROUNDS):
        made = grounds.draw(ground, size, np.random.default_rng(seed))
        assert made.shape == (size, size, 3)
        assert made.dtype == np.uint8
    assert (grounds.draw("", size, np.random.default_rng(seed)) == 255).all()


def test_the_same_seed_draws_the_same(discs: picture.Sprites) -> None:
    asked = scene.draw(random.Random(4))
    first, second = (picture.draw(asked, discs, 64, np.random.default_rng(5)).pixels for _ in range(2))
    assert (first == second).all()


@pytest.mark.parametrize(
    ("singular", "plural"), [("cat", "cats"), ("bus", "buses"), ("fox", "foxes"), ("berry", "berries"), ("toy", "toys")]
)
def test_regular_plurals(singular: str, plural: str) -> None:
    assert things.plural(singular) == plural


def test_a_damaged_list_of_things_is_named(tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "things.txt").write_text("cat | cat | 猫\n", "utf-8")
    with pytest.raises(ValueError, match="cat"):
        things.read(tmp_path / "things.txt")
