"""Small pictures with labels: from a folder, and the emoji of animals and foods."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from studio.errors import StudioError
from studio_datasets import labelled


def save(path: Path, colour: str = "red", size: tuple[int, int] = (10, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", size, colour).save(path)


def test_folders_are_labels(tmp_path: Path) -> None:
    save(tmp_path / "cat" / "deep" / "1.png")
    save(tmp_path / "dog" / "2.JPG", "blue")
    (tmp_path / "dog" / "notes.txt").write_text("not a picture")
    pictures, labels = labelled.folder(tmp_path, 8)
    assert labels == ["cat", "dog"]
    assert pictures.shape == (2, 8, 8, 3)
    assert pictures[0, 4, 4].tolist() == [255, 0, 0]
    assert pictures[0, 4, 0].tolist() == [255, 255, 255]  # fitted on white


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    save(tmp_path / "1.png")
    save(tmp_path / "2.webp")
    save(tmp_path / "3.avif")
    assert labelled.folder(tmp_path, 8)[1] == ["", "", ""]


def test_bad_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(StudioError, match="has no pictures"):
        labelled.folder(tmp_path / "gone", 8)
    save(tmp_path / "cat" / "1.png")
    save(tmp_path / "loose.png")
    with pytest.raises(StudioError, match=r"loose\.png` lies beside folders"):
        labelled.folder(tmp_path, 8)
    (tmp_path / "loose.png").unlink()
    (tmp_path / "cat" / "2.png").write_bytes((tmp_path / "cat" / "1.png").read_bytes()[:45])
    with pytest.raises(StudioError, match=r"cannot read .*2\.png` as a picture"):
        labelled.folder(tmp_path, 8)


def test_pictures_are_read_as_they_are_shown(tmp_path: Path) -> None:
    """Turned by their EXIF tag, in 16 bits, in a palette with a transparent colour, in CMYK."""
    upper = PIL.Image.new("RGB", (8, 8), "white")
    upper.paste("red", (0, 0, 8, 4))
    exif = PIL.Image.Exif()
    exif[0x0112] = 3  # upside down
    upper.transpose(PIL.Image.Transpose.ROTATE_180).save(tmp_path / "1.png", exif=exif)
    deep = np.zeros((8, 8), np.uint16)
    deep[:4] = 40_000
    PIL.Image.fromarray(deep).save(tmp_path / "2.png")
    upper.convert("CMYK").save(tmp_path / "3.jpg", quality=100)
    pictures, _ = labelled.folder(tmp_path, 8)
    upright = np.asarray(upper).astype(int)
    assert np.abs(pictures[0] - upright).max() == 0
    assert np.abs(pictures[1] - np.where(np.arange(8) < 4, 40_000 / 257, 0)[:, None, None]).max() <= 1
    assert np.abs(pictures[2] - upright).max() < 40


def test_the_emoji_of_animals_and_foods(tmp_path: Path) -> None:
    rows = [("emoji", "food", "train"), ("emoji", "flags", "train"), ("clipart", "food", "train"),
            ("emoji", "animals", "train"), ("emoji", "animals", "test")]  # fmt: skip
    records = [
        {"source": source, "group": group, "split": split, "label": f"{index}"}
        for index, (source, group, split) in enumerate(rows)
    ]
    (tmp_path / "records.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")
    np.save(tmp_path / "pictures.npy", np.full((5, 16, 16, 3), np.arange(5, dtype=np.uint8)[:, None, None, None] * 50))
    pictures, labels = labelled.things(tmp_path, 8)
    assert labels == ["0", "3"]
    assert pictures[:, 4, 4, 0].tolist() == [0, 150]
    (tmp_path / "records.jsonl").write_text(json.dumps(records[1]) + "\n")
    with pytest.raises(StudioError, match="no emoji of animals or food"):
        labelled.things(tmp_path, 8)
