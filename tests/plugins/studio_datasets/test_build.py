"""The data set from hand-made packages, and the command that makes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from studio.cli.main import run
from studio.errors import StudioError
from studio_datasets import build, emoji, fetch
from studio_datasets.record import Record, held_out

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
        made.append([(path.name, path.read_bytes()) for path in sorted((tmp_path / name).iterdir())])
    assert made[0] == made[1]
    assert [name for name, _ in made[0]] == ["pictures.npy", "records.jsonl"]


def test_without_a_data_set_it_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(StudioError, match="holds no data set") as caught:
        build.load(tmp_path)
    assert str(tmp_path) in caught.value.message
    assert caught.value.hint == "make it with `studio train data`"


def test_the_command_says_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "data", "--help"]) == 0
    out = capsys.readouterr().out
    assert "Fetch the data packages" in out
    assert "--work" in out
    assert "(32 to 256)" in out


@pytest.mark.parametrize("size", ["31", "257", "nan"])
def test_the_command_refuses_a_size(capsys: pytest.CaptureFixture[str], size: str) -> None:
    assert run(["train", "data", "--size", size]) == 2
    assert "size" in capsys.readouterr().err


def test_the_command_builds(tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "data", "--work", str(tmp_path), "--size", "32"]) == 0
    assert "38 pictures" in "".join(capsys.readouterr())
    assert len(build.load(tmp_path / "data")[1]) == 38
