"""The data set from hand-made packages, and the command that makes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recipes.command import PLUGIN
from recipes.data import build, emoji, fetch
from recipes.data.record import Record, held_out
from studio.cli.main import run
from studio.errors import StudioError
from studio.training.pictures import labelled

from . import packages


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Every package unpacked, so that nothing is fetched."""
    cache = tmp_path / "cache"
    packages.emoji(cache / fetch.EMOJI.folder / "package", cache / fetch.WORDS.folder / "package")
    packages.wordnet(cache / fetch.WORDNET.folder / "usr" / "share" / "wordnet")
    art = Path("usr/share/openclipart")
    pictures, vectors = cache / fetch.CLIPART.folder / art / "png", cache / fetch.CLIPART_WORDS.folder / art / "svg"
    for name, title in (("apple", "green apple"), ("bat", "bat"), ("jo", "jo smith")):
        packages.drawing(pictures, vectors, f"food/{name}", packages.picture("green"), title)
    for index in range(30):
        packages.drawing(pictures, vectors, f"tools/fire{index}", packages.picture("red", (32, 32)), "fire engine")
    return cache


def test_builds_pictures_and_records(tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "data"
    assert build.build(folder, cache, 32) == 6 + 2 + 30  # `jo smith` names nothing
    pictures, records = build.load(folder)
    assert pictures.shape == (38, 32, 32, 3)
    assert pictures.dtype == np.uint8
    assert not pictures.flags.writeable
    assert {frozenset(record) for record in records} == {frozenset(Record.__dataclass_fields__)}
    apple, bat, art_apple, art_bat = records[0], records[3], records[6], records[7]
    assert (apple["gloss"], apple["zh_label"]) == ("", "红苹果")  # `red apple` is no word of WordNet's
    assert (bat["gloss"], bat["synonyms"], bat["count"]) == (
        "nocturnal mouselike mammal; eats insects", ["chiropteran"], 5,
    )  # fmt: skip
    assert art_bat["gloss"] == "a club used for hitting a ball"  # clip art's bat: the frequent one
    assert art_apple["gloss"] == "", "`green apple` is kept for its last word and defined by none"


def test_common_nouns_stay_in_training_and_clip_art_is_split(tmp_path: Path, cache: Path) -> None:
    build.build(tmp_path / "data", cache, 32)
    _, records = build.load(tmp_path / "data")
    seen = set()
    for record in records:
        noun = record["source"] == "emoji" and record["group"] in emoji.NOUN_GROUPS
        kept = held_out(Record(**record), 12 if record["source"] == "emoji" else 5)
        assert record["split"] == ("test" if kept and not noun else "train")
        seen.add((record["source"], noun, kept))
    assert len(seen) == 6, "each case is there: the whale would be held out, were it not a noun"


def test_the_same_packages_give_the_same_bytes(tmp_path: Path, cache: Path) -> None:
    made = []
    for name in ("one", "two"):
        build.build(tmp_path / name, cache, 32)
        made.append([(path.name, path.read_bytes()) for path in sorted((tmp_path / name).rglob("*")) if path.is_file()])
    assert made[0] == made[1]
    assert {"pictures.npy", "records.jsonl", "emoji-1f34e.png"} < {name for name, _ in made[0]}


def test_without_a_data_set_it_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(StudioError, match="holds no data set") as caught:
        build.load(tmp_path)
    assert str(tmp_path) in caught.value.message
    assert caught.value.hint == "make it with `python -m recipes.data`"


def recipe(*options: str) -> int:
    return run(["--plugin", str(PLUGIN), "train", "starter-data", *options])


def test_the_command_says_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert recipe("--help") == 0
    out = capsys.readouterr().out
    assert "Download the data packages" in out
    assert "--work" in out
    assert "(32 to 256)" in out


@pytest.mark.parametrize("size", ["31", "257", "nan"])
def test_the_command_refuses_a_size(capsys: pytest.CaptureFixture[str], size: str) -> None:
    assert recipe("--size", size) == 2
    assert "size" in capsys.readouterr().err


def test_the_command_builds(tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert recipe("--work", str(tmp_path), "--size", "32") == 0
    assert "38 pictures" in "".join(capsys.readouterr())
    assert len(build.load(tmp_path / "data")[1]) == 38


def test_animals_and_foods_are_a_folder_of_pictures_with_labels(tmp_path: Path, cache: Path) -> None:
    build.build(tmp_path / "data", cache, 32)
    pictures, records = build.load(tmp_path / "data")
    shown, labels = labelled(tmp_path / "data" / "emoji", 32)
    wanted = sorted(
        (record["label"], pictures[row].tobytes()) for row, record in enumerate(records) if build.is_labelled(record)
    )
    assert {label for label, _ in wanted} == {"red apple", "bat", "whale"}
    assert sorted(zip(labels, (each.tobytes() for each in shown), strict=True)) == wanted
