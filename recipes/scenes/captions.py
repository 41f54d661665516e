"""Captions of a scene: English and Chinese, short and long, with and without articles.

Try it: `english(Scene((Part("dog", "", 2), Part("automobile", "red")), "left of", ground="grass"), random.Random(1))`
"""

from __future__ import annotations

import random

from recipes.scenes import things
from recipes.scenes.scene import Part, Scene

NUMBERS = ("", "one", "two", "three", "four", "five")
CHINESE_NUMBERS = ("", "一", "两", "三", "四", "五")
COLOURS = {
    "red": "红", "orange": "橙", "yellow": "黄", "green": "绿", "blue": "蓝", "purple": "紫", "pink": "粉",
    "brown": "棕", "black": "黑", "white": "白", "grey": "灰", "turquoise": "青",
}  # fmt: skip
"""The composer's colours and their Chinese names, to which 色 may be added."""
ALSO = {"grey": "gray", "purple": "violet", "turquoise": "teal"}

GROUNDS: dict[str, tuple[str, ...]] = {
    "grass": ("on grass", "on the grass", "in the grass", "on a green lawn", "in a meadow", "in a green field"),
    "night": ("at night", "at night", "in the night", "under a night sky", "under the stars", "on a dark night"),
    "sea": ("in the sea", "on the sea", "in the water", "at sea", "in the ocean", "on the ocean"),
    "sky": ("in the sky", "in the sky", "in a blue sky", "against a blue sky", "up in the sky"),
    "sand": ("on sand", "on the sand", "on a beach", "on the beach", "in the desert", "at the beach"),
    "street": ("on a street", "on the street", "in the street", "on the road", "on a city street"),
    "room": ("in a room", "in the room", "inside a room", "indoors", "in a living room"),
    "snow": ("in the snow", "on snow", "in winter", "on the snow", "in snow"),
    "mountains": ("in the mountains", "in front of mountains", "with mountains behind", "near the mountains"),
    "sunset": ("at sunset", "at sunset", "in front of a sunset", "in the evening sun"),
    "forest": ("in a forest", "in the forest", "in the woods", "among trees"),
}
ALONE: dict[str, tuple[str, ...]] = {
    "grass": ("grass", "a green meadow", "an empty lawn"), "night": ("night", "a starry night", "the night sky"),
    "sea": ("the sea", "the ocean", "sea under a blue sky"), "sky": ("the sky", "a blue sky", "blue sky with clouds"),
    "sand": ("sand", "a beach", "an empty desert"), "street": ("a street", "an empty street", "a city street"),
    "room": ("a room", "an empty room", "a living room"), "snow": ("snow", "a snowy field", "winter"),
    "mountains": ("mountains", "a mountain range", "mountains under the sky"),
    "sunset": ("a sunset", "sunset over mountains", "the sun goes down"), "forest": ("a forest", "woods", "the forest"),
}  # fmt: skip
CHINESE_GROUNDS: dict[str, tuple[str, ...]] = {
    "grass": ("草地上", "草坪上", "草丛里"), "night": ("夜晚", "夜里", "星空下", "夜空下"),
    "sea": ("海里", "海面上", "海上"),
    "sky": ("天空中", "蓝天上", "天上"), "sand": ("沙滩上", "沙漠里", "海滩上"), "street": ("街上", "马路上", "街道上"),
    "room": ("房间里", "屋里", "室内"), "snow": ("雪地里", "雪地上", "雪中"), "mountains": ("群山前", "山里", "大山前"),
    "sunset": ("夕阳下", "日落时", "傍晚"), "forest": ("森林里", "树林里", "林中"),
}  # fmt: skip
BETWEEN: dict[str, tuple[str, ...]] = {
    "left of": ("{a} to the left of {b}", "{a} left of {b}", "{a} on the left of {b}",
                "{a} on the left and {b} on the right", "on the left {a}, on the right {b}"),
    "right of": ("{a} to the right of {b}", "{a} right of {b}", "{a} on the right of {b}",
                 "{a} on the right and {b} on the left"),
    "above": ("{a} above {b}", "{a} above {b}", "{a} over {b}", "{b} below {a}", "{b} under {a}"),
    "below": ("{a} below {b}", "{a} below {b}", "{a} under {b}", "{a} beneath {b}", "{b} above {a}"),
    "on": ("{a} on {b}", "{a} on {b}", "{a} on top of {b}", "{a} sitting on {b}", "{a} standing on {b}"),
    "in front of": ("{a} in front of {b}", "{a} in front of {b}", "{b} behind {a}"),
}  # fmt: skip
CHINESE_BETWEEN: dict[str, tuple[str, ...]] = {
    "left of": ("{a}在{b}的左边", "{a}在{b}左边", "{b}左边有{a}", "左边是{a}，右边是{b}"),
    "right of": ("{a}在{b}的右边", "{a}在{b}右边", "{b}右边有{a}"),
    "above": ("{a}在{b}上方", "{a}在{b}的上方", "{b}上方有{a}"),
    "below": ("{a}在{b}下面", "{a}在{b}下方", "{b}下面有{a}"),
    "on": ("{a}在{b}上", "{a}在{b}上面", "{b}上有{a}"),
    "in front of": ("{a}在{b}前面", "{a}在{b}的前面", "{b}前面有{a}"),
}
TOGETHER = (
    "{a} and {b}",
    "{a} and {b}",
    "{a} and {b}",
    "{a} next to {b}",
    "{a} beside {b}",
    "{a} with {b}",
    "{a}, {b}",
)
CHINESE_TOGETHER = ("{a}和{b}", "{a}和{b}", "{a}与{b}", "{a}旁边有{b}", "{a}，{b}")
BEFORE = ("a picture of ", "a drawing of ", "draw ", "an image of ", "a photo of ", "an illustration of ")
CHINESE_BEFORE = ("画", "一张图：", "请画", "图片：")

_CONSONANT_SOUND = ("uni", "ufo", "one", "eu")


def article(phrase: str) -> str:
    """The phrase with `a` or `an` before it, by the sound of its first word."""
    vowel = phrase[:1].lower() in "aeiou" and not phrase.lower().startswith(_CONSONANT_SOUND)
    return f"{'an' if vowel else 'a'} {phrase}"


def _thing(label: str) -> things.Thing:
    return _BY_LABEL[label]


_BY_LABEL = {thing.label: thing for thing in things.read()}


def _common(rng: random.Random, names: tuple[str, ...] | tuple[things.Noun, ...]) -> int:
    """The index of a name: the plain one in two of three cases."""
    return 0 if rng.random() < 0.67 else rng.randrange(len(names))


def phrase(part: Part, rng: random.Random, plain: bool = False) -> str:
    """A part in English: `two red apples`. `plain` uses the first name and an article, as in evaluation."""
    thing = _thing(part.thing)
    noun = thing.english[0 if plain else _common(rng, thing.english)]
    colour = part.colour if plain or rng.random() < 0.85 else ALSO.get(part.colour, part.colour)
    behind = bool(colour) and not plain and rng.random() < 0.06  # a cat that is red
    before = f"{colour} " if colour and not behind else ""
    if part.count == 1:
        name = before + noun.singular
        if plain or rng.random() < 0.7:
            name = article(name)
        elif rng.random() < 0.4:
            name = f"the {name}" if rng.random() < 0.5 else f"one {name}"
        return f"{name} that is {colour}" if behind else name
    number = NUMBERS[part.count] if plain or rng.random() < 0.75 else str(part.count)
    name = f"{number} {before}{noun.plural}"
    if not plain and part.count == 2 and rng.random() < 0.08:
        name = f"a pair of {before}{noun.plural}"
    if not plain and part.count > 2 and rng.random() < 0.06:
        name = f"a group of {name}"
    return f"{name} that are {colour}" if behind else name


def _background(ground: str) -> str:
    """The colour of a plain background, or an empty string."""
    return ground.removesuffix(" background") if ground.endswith(" background") else ""


def english(scene: Scene, rng: random.Random, plain: bool = False) -> str:
    """One English caption. `plain` gives the plainest one with all facts of the scene, as in evaluation."""
    if not scene.parts:
        return rng.choice(ALONE[scene.ground])
    text = "{a}"
    if len(scene.parts) == 2:
        known = BETWEEN[scene.relation] if scene.said else TOGETHER
        text = known[0] if plain else rng.choice(known)
    phrases = [phrase(part, rng, plain) for part in scene.parts]
    text = text.format(a=phrases[0], b=phrases[-1])
    if colour := _background(scene.ground):
        text += f" on {article(colour)} background"
    elif scene.ground:
        known = GROUNDS[scene.ground]
        place = known[0] if plain else rng.choice(known)
        text = f"{place}, {text}" if not plain and rng.random() < 0.08 else f"{text} {place}"
    elif not plain and rng.random() < 0.05:
        text += " on a white background"
    return text if plain or rng.random() > 0.1 else rng.choice(BEFORE) + text


def _chinese_phrase(part: Part, rng: random.Random, plain: bool) -> str:
    thing = _thing(part.thing)
    noun = thing.chinese[0 if plain else _common(rng, thing.chinese)]
    colour = COLOURS.get(part.colour, "")
    if colour:
        noun = (
            f"{colour}色的" if plain else rng.choice((f"{colour}色的", f"{colour}色的", f"{colour}色", colour))
        ) + noun
    if part.count == 1 and not plain and rng.random() < 0.3:
        return noun
    return f"{CHINESE_NUMBERS[part.count]}{thing.measure}{noun}"


def chinese(scene: Scene, rng: random.Random, plain: bool = False) -> str:
    """One Chinese caption; see `english`."""
    if not scene.parts:
        return rng.choice(CHINESE_GROUNDS[scene.ground]).removesuffix("上").removesuffix("里").removesuffix("下")
    text = "{a}"
    if len(scene.parts) == 2:
        known = CHINESE_BETWEEN[scene.relation] if scene.said else CHINESE_TOGETHER
        text = known[0] if plain else rng.choice(known)
    phrases = [_chinese_phrase(part, rng, plain) for part in scene.parts]
    text = text.format(a=phrases[0], b=phrases[-1])
    if colour := _background(scene.ground):
        text = f"{text}，{COLOURS[colour]}色背景"
    elif scene.ground:
        known = CHINESE_GROUNDS[scene.ground]
        place = known[0] if plain else rng.choice(known)
        there = f"{place}有{text}" if len(scene.parts) == 1 or not scene.said else f"{place}，{text}"
        text = there if plain or rng.random() < 0.5 else f"{place}的{text}"
    return text if plain or rng.random() > 0.08 else rng.choice(CHINESE_BEFORE) + text


def caption(scene: Scene, rng: random.Random) -> str:
    """One caption, in English in three of four cases."""
    return english(scene, rng) if rng.random() < 0.75 else chinese(scene, rng)
