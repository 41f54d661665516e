"""Small packages made by hand, laid out as the real ones are when unpacked."""

from __future__ import annotations

import json
from pathlib import Path

import PIL.Image
import PIL.ImageDraw

SVG = """<?xml version="1.0"?>
<svg xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<metadata><rdf:RDF><dc:title>{title}</dc:title><dc:subject><rdf:Bag>{words}</rdf:Bag></dc:subject></rdf:RDF></metadata>
</svg>
"""

EMOJI = [
    {"hexcode": "1F34E", "label": "red apple", "tags": ["fruit", "red apple", "newton’s"], "group": 4},
    {"hexcode": "2764", "label": "red heart", "tags": ["love"], "group": 8},
    {"hexcode": "1F44B", "label": "waving hand", "tags": [], "group": 1,
     "skins": [{"hexcode": "1F44B-1F3FB", "label": "waving hand: light skin tone", "group": 1}]},
    {"hexcode": "1F987", "label": "bat", "tags": ["vampire"], "group": 3},
    {"hexcode": "1F1E6", "label": "regional indicator A"},
    {"hexcode": "1F40B", "label": "whale", "group": 3},
    {"hexcode": "1F605", "label": "grinning face with sweat", "group": 0},
    {"hexcode": "1F9FF", "label": "nazar amulet", "group": 7},
]  # fmt: skip
CHINESE = [{"hexcode": "1F34E", "label": "红苹果", "tags": ["苹果", "红苹果"], "group": 4}]
HAS_PICTURE = {"1f34e": "red", "2764-fe0f": "crimson", "1f44b": "gold", "1f44b-1f3fb": "tan", "1f987": "purple",
               "1f1e6": "blue", "1f40b": "navy", "1f605": "yellow"}  # fmt: skip


def picture(colour: str, size: tuple[int, int] = (64, 64)) -> PIL.Image.Image:
    """A disc on nothing."""
    image = PIL.Image.new("RGBA", size, (0, 0, 0, 0))
    PIL.ImageDraw.Draw(image).ellipse([2, 2, size[0] - 3, size[1] - 3], colour)
    return image


def emoji(pictures: Path, words: Path) -> None:
    """Both emoji packages: WebP files and emojibase's JSON."""
    (pictures / "assets").mkdir(parents=True)
    for code, colour in HAS_PICTURE.items():
        picture(colour).save(pictures / "assets" / f"{code}.webp", lossless=True)
    for language, entries in (("en", EMOJI), ("zh", CHINESE)):
        (words / language).mkdir(parents=True)
        (words / language / "data.json").write_text(json.dumps(entries, ensure_ascii=False), "utf-8")


def animation(package: Path, code: str, frames: int = 48) -> None:
    """A package of one animated emoji: a disc that sinks, 24 frames a second."""
    (package / "assets").mkdir(parents=True)
    shown = [PIL.Image.new("RGBA", (64, 64), (0, 0, 0, 0)) for _ in range(frames)]
    for index, frame in enumerate(shown):
        frame.paste(picture("red", (32, 32)), (16, index // 2))
    path = package / "assets" / f"{code}.webp"
    shown[0].save(path, save_all=True, append_images=shown[1:], duration=42, lossless=True)


def drawing(pictures: Path, vectors: Path, name: str, image: PIL.Image.Image, title: str, *words: str) -> None:
    """One drawing of both clip-art packages; `name` is a folder and a stem."""
    for folder in (pictures, vectors):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    image.save(pictures / f"{name}.png")
    text = SVG.format(title=title, words="".join(f"<rdf:li>{word}</rdf:li>" for word in words))
    (vectors / f"{name}.svg").write_text(text, "utf-8")


DATA = """\
  1 This software and database is being provided to you, the LICENSEE, by
  2 Princeton University under the following license.
00000100 05 n 02 bat 0 chiropteran 0 001 @ 00000900 n 0000 | nocturnal mouselike mammal; eats insects
00000200 06 n 01 bat 0 001 @ 00000900 n 0000 | a club used for hitting a ball; "he broke his bat"; "a bat"
00000300 04 n 02 bat 0 at-bat 0 000 | (baseball) a turn trying to get a hit
00000400 13 n 01 apple 0 000 | fruit with red or yellow or green skin
00000500 20 n 0b apple 1 orchard_apple_tree 0 Malus_pumila 0 a 0 b 0 c 0 d 0 e 0 f 0 g 0 h 0 000 | native tree
00000600 28 n 01 day 0 000 | time for Earth to make a complete rotation;  "two days later"
00000700 06 n 01 fire_engine 0 000 | a truck that fights fires
"""
INDEX = """\
  1 This software and database is being provided to you, the LICENSEE, by
bat n 3 2 @ ~ 3 1 00000300 00000200 00000100
chiropteran n 1 1 @ 1 0 00000100
apple n 2 0 2 1 00000400 00000500
day n 1 0 1 1 00000600
fire_engine n 1 0 1 0 00000700
"""
COUNTS = """\
bat%1:04:00:: 1 9
bat%1:05:00:: 3 2
bat%1:06:00:: 2 3
bat%2:35:00:: 1 40
day%1:28:00:: 1 100
fire_engine%1:06:00:: 1 4
"""


def wordnet(folder: Path) -> None:
    """WordNet's database text: seven synsets."""
    folder.mkdir(parents=True)
    for name, text in (("data.noun", DATA), ("index.noun", INDEX), ("cntlist.rev", COUNTS)):
        (folder / name).write_text(text, "utf-8")
