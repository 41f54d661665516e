"""Training pictures from a folder, with labels or captions."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from studio.errors import StudioError
from studio.training import pictures


def save(path: Path, colour: str = "red", size: tuple[int, int] = (10, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", size, colour).save(path)


def test_folders_are_labels(tmp_path: Path) -> None:
    save(tmp_path / "cat" / "deep" / "1.png")
    save(tmp_path / "dog" / "2.JPG", "blue")
    (tmp_path / "dog" / "notes.txt").write_text("not a picture")
    shown, labels = pictures.labelled(tmp_path, 8)
    assert labels == ["cat", "dog"]
    assert shown.shape == (2, 8, 8, 3)
    assert shown[0, 4, 4].tolist() == [255, 0, 0]
    assert shown[0, 4, 0].tolist() == [255, 255, 255]  # fitted on white


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    save(tmp_path / "1.png")
    save(tmp_path / "2.webp")
    save(tmp_path / "3.avif")
    assert pictures.labelled(tmp_path, 8)[1] == ["", "", ""]


def test_bad_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(StudioError, match="has no pictures"):
        pictures.labelled(tmp_path / "gone", 8)
    save(tmp_path / "cat" / "1.png")
    save(tmp_path / "loose.png")
    with pytest.raises(StudioError, match=r"loose\.png` has no label"):
        pictures.labelled(tmp_path, 8)
    (tmp_path / "loose.png").unlink()
    (tmp_path / "cat" / "2.png").write_bytes((tmp_path / "cat" / "1.png").read_bytes()[:45])
    with pytest.raises(StudioError, match=r"cannot read .*2\.png` as a picture"):
        pictures.labelled(tmp_path, 8)


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
    shown, _ = pictures.labelled(tmp_path, 8)
    upright = np.asarray(upper).astype(int)
    assert np.abs(shown[0] - upright).max() == 0
    assert np.abs(shown[1] - np.where(np.arange(8) < 4, 40_000 / 257, 0)[:, None, None]).max() <= 1
    assert np.abs(shown[2] - upright).max() < 40


def test_a_caption_is_the_text_beside_a_picture_else_its_folder(tmp_path: Path) -> None:
    save(tmp_path / "1.png")
    (tmp_path / "1.txt").write_text("\ufeffa red\n  box \n", "utf-8")
    save(tmp_path / "a cat" / "2.png", "blue")
    save(tmp_path / "a cat" / "3.png", "blue")
    (tmp_path / "a cat" / "3.txt").write_text("一只猫", "utf-8")
    shown, captions = pictures.captioned(tmp_path, 8)
    assert captions == ["a red box", "a cat", "一只猫"]
    assert shown[:, 4, 4].tolist() == [[255, 0, 0], [0, 0, 255], [0, 0, 255]]


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, r"1\.png` has no caption"), (b" \n", r"1\.png` has no caption"), (b"caf\xe9", r"1\.txt` cannot be read"),
     (b"a" * 70_000, "more than 65,536 bytes")],
)  # fmt: skip
def test_a_picture_without_a_caption_is_named(tmp_path: Path, text: bytes | None, said: str) -> None:
    save(tmp_path / "1.png")
    if text is not None:
        (tmp_path / "1.txt").write_bytes(text)
    with pytest.raises(StudioError, match=said) as refused:
        pictures.captioned(tmp_path, 8)
    assert refused.value.hint


def test_a_caption_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    save(tmp_path / "1.png")
    os.mkfifo(tmp_path / "1.txt")
    with pytest.raises(StudioError, match=r"1\.txt` cannot be read"):
        pictures.captioned(tmp_path, 8)
