"""The readers of emoji, clip art and WordNet on small packages made by hand."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from recipes.data import animated, clipart, emoji
from recipes.data.record import Record
from recipes.data.wordnet import LEXNAMES, WordNet
from studio.errors import MediaError

from . import packages

NUMBER = {name: number for number, name in LEXNAMES.items()}


@pytest.fixture
def net(tmp_path: Path) -> WordNet:
    packages.wordnet(tmp_path / "wordnet")
    return WordNet(tmp_path / "wordnet")


def test_emoji_are_the_base_forms_that_both_packages_hold(tmp_path: Path) -> None:
    packages.emoji(tmp_path / "pictures", tmp_path / "words")
    read = list(emoji.read(tmp_path / "pictures", tmp_path / "words", 32))
    assert [record.label for record, _ in read] == [
        "red apple", "red heart", "waving hand", "bat", "whale", "grinning face with sweat",
    ]  # fmt: skip
    assert read[0][0] == Record(
        id="emoji-1f34e", source="emoji", group="food", label="red apple", tags=("fruit", "newton's"),
        zh_label="红苹果", zh_tags=("苹果",),
    )  # fmt: skip
    heart = read[1][0]
    assert (heart.id, heart.group, heart.zh_label, heart.zh_tags) == ("emoji-2764", "symbols", "", ())
    for _, pixels in read:
        assert pixels.shape == (32, 32, 3)
        assert pixels.dtype == np.uint8
        assert (pixels[0, 0] == 255).all()
    assert tuple(read[0][1][16, 16]) == (255, 0, 0)


def test_animations_have_the_frames_of_their_times_at_any_rate(tmp_path: Path) -> None:
    folder = tmp_path / "one" / "assets"
    folder.mkdir(parents=True)
    # A disc moves right by a pixel each 20 ms; the third frame stays for three.
    at = [0, 1, 2, 2, 2, 3, 4, 5, 6, 7]
    frames = []
    for dx in at:
        frame = PIL.Image.new("RGBA", (64, 64), (0, 0, 0, 0))
        frame.paste(packages.picture("red", (32, 32)), (dx * 4, 16))
        frames.append(frame)
    frames[0].save(folder / "2764-fe0f.webp", save_all=True, append_images=frames[1:], duration=20, lossless=True)
    packages.picture("navy").save(folder / "1f40b.webp", lossless=True)
    (folder / "1f987.webp").write_bytes((folder / "2764-fe0f.webp").read_bytes()[:-9])
    found = animated.files([tmp_path / "one", tmp_path / "none"])
    assert set(found) == {"emoji-2764", "emoji-1f40b", "emoji-1f987"}

    def middles(fps: float) -> list[float]:
        made = animated.read(found["emoji-2764"], fps, 32)
        assert made.dtype == np.uint8
        assert made.shape[1:] == (32, 32, 3)
        columns = np.argwhere((made < 128).any(3))
        return [columns[columns[:, 0] == t][:, 2].mean() for t in range(len(made))]

    whole = middles(50)
    assert np.diff(whole) == pytest.approx(2 * np.diff(at), abs=0.2)
    assert middles(25) == whole[::2]
    assert middles(100) == [each for each in whole for _ in (0, 1)]
    assert len(animated.read(found["emoji-1f40b"], 12, 32)) == 1
    with pytest.raises(MediaError, match="truncated"):
        animated.read(found["emoji-1f987"], 12, 32)


def test_clip_art_is_read_with_its_words(tmp_path: Path) -> None:
    pictures, vectors = tmp_path / "png", tmp_path / "svg"
    words = ("fruit", "Red_Apple", "fruit", "ab", "açaí", "one", "two", "three", "four", "five")
    packages.drawing(
        pictures, vectors, "food/sub/apple", packages.picture("red"), "Red_apple 02 clip art by Jo", *words
    )
    packages.drawing(pictures, vectors, "animals/cat", packages.picture("orange"), "cat", "cat", "pet")
    packages.drawing(pictures, vectors, "shapes/star", packages.picture("gold"), "star")
    (cat, _), (apple, pixels) = clipart.read(pictures, vectors, 32)  # in the order of FOLDERS; shapes are left out
    assert cat == Record(id="clipart-animals/cat", source="clipart", group="animals", label="cat", tags=("pet",))
    assert apple.id == "clipart-food/sub/apple"
    assert apple.label == "red apple"
    assert apple.tags == ("fruit", "one", "two", "three", "four")  # at most six, without the label itself
    assert tuple(pixels[16, 16]) == (255, 0, 0)


@pytest.mark.parametrize(
    "title", ["", "x", "123.svg", "a car flag", "naked man", "one two three four five six", "苹果", "Icon"]
)
def test_titles_that_name_no_thing_are_left_out(tmp_path: Path, title: str) -> None:
    packages.drawing(tmp_path / "png", tmp_path / "svg", "food/it", packages.picture("red"), title)
    assert list(clipart.read(tmp_path / "png", tmp_path / "svg", 32)) == []


def test_tags_can_leave_it_out_too(tmp_path: Path) -> None:
    packages.drawing(tmp_path / "png", tmp_path / "svg", "food/it", packages.picture("red"), "man", "silhouette")
    assert list(clipart.read(tmp_path / "png", tmp_path / "svg", 32)) == []


@pytest.mark.parametrize(
    "image",
    [
        packages.picture("red", (64, 300)),  # long
        packages.picture("gray"),  # no colour
        PIL.Image.new("RGB", (64, 64), "white"),
        PIL.Image.new("1", (4000, 3001)),  # a poster
    ],
    ids=["long", "colourless", "white", "large"],
)
def test_pictures_of_little_use_are_left_out(tmp_path: Path, image: PIL.Image.Image) -> None:
    packages.drawing(tmp_path / "png", tmp_path / "svg", "food/it", image, "apple")
    assert list(clipart.read(tmp_path / "png", tmp_path / "svg", 32)) == []


@pytest.mark.parametrize("side", [12_000, 20_000], ids=["Pillow warns", "Pillow refuses"])
def test_a_huge_picture_is_passed_over_unread(tmp_path: Path, side: int) -> None:
    packages.drawing(tmp_path / "png", tmp_path / "svg", "food/huge", packages.picture("red"), "apple")
    file = tmp_path / "png" / "food" / "huge.png"
    data = file.read_bytes()
    header = b"IHDR" + struct.pack(">II", side, side) + data[24:29]
    file.write_bytes(data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:])
    assert list(clipart.read(tmp_path / "png", tmp_path / "svg", 32)) == []


def test_a_picture_without_words_is_left_out(tmp_path: Path) -> None:
    packages.drawing(tmp_path / "png", tmp_path / "svg", "food/it", packages.picture("red"), "apple")
    (tmp_path / "svg" / "food" / "it.svg").unlink()
    assert list(clipart.read(tmp_path / "png", tmp_path / "svg", 32)) == []


def test_wordnet_reads_synsets_senses_and_counts(net: WordNet) -> None:
    assert len(net.synsets) == 7
    assert net.synsets[100].words == ("bat", "chiropteran")
    assert net.synsets[500].words[:3] == ("apple", "orchard apple tree", "Malus pumila")
    assert len(net.synsets[500].words) == 11  # the count is in base 16
    assert net.synsets[200].gloss == "a club used for hitting a ball"  # without its examples
    assert net.synsets[600].gloss == "time for Earth to make a complete rotation"
    assert net.synsets[100].gloss == "nocturnal mouselike mammal; eats insects"
    assert net.senses["bat"] == [300, 200, 100]
    assert net.senses["fire engine"] == [700]
    assert net.counts["bat"] == 5, "as animal and as artifact, not as act and not as verb"
    assert net.counts["fire engine"] == 4
    assert net.counts["day"] == 0


@pytest.mark.parametrize(
    ("word", "prefer", "offset"),
    [
        ("bat", (), 200),  # the most frequent that can be drawn
        ("bat", ("animal", "plant"), 100),
        ("bat", ("plant", "food"), 200),  # no such meaning: the most frequent again
        ("Bat", ("animal",), 100),
        ("apple", ("food", "plant"), 400),
        ("apple", ("plant", "food"), 400),  # preferred ones are equals: frequency decides
        ("apple", ("plant",), 500),
        ("fire engine", (), 700),
        ("day", (), None),
        ("unknown", ("food",), None),
        ("", (), None),
    ],
)
def test_the_meaning_that_can_be_drawn(net: WordNet, word: str, prefer: tuple[str, ...], offset: int | None) -> None:
    found = net.drawable(word, tuple(NUMBER[name] for name in prefer))
    assert found is (None if offset is None else net.synsets[offset])
