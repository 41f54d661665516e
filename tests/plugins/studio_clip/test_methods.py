"""`Studio.rank`, `label` and `embed`: lists in memory and lists of files, whatever their length."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest

import studio
from studio.errors import InputError, MediaError
from studio_clip import batches, methods

COLOURS = ("red", "blue", "yellow", "green", "black")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[studio.Studio]:
    with studio.Studio(home=tmp_path_factory.mktemp("home"), device="cpu") as made:
        yield made


@pytest.fixture(scope="module")
def discs() -> list[studio.Image]:
    made = []
    for colour in COLOURS:
        picture = PIL.Image.new("RGB", (96, 96), "white")
        PIL.ImageDraw.Draw(picture).ellipse((16, 16, 80, 80), fill=colour)
        made.append(studio.Image(picture))
    return made


def test_pictures_in_memory_and_files_are_ranked_alike(
    host: studio.Studio, discs: list[studio.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [each.save(tmp_path / f"{colour}.png") for each, colour in zip(discs, COLOURS, strict=True)]
    scores = host.rank("a red circle", discs)
    assert (len(scores), max(scores)) == (5, scores[0])
    asked = []
    assert host.rank("a red circle", paths, follow=asked.append) == pytest.approx(scores, abs=1e-5)
    assert len(asked) == 2, "four files and one"
    monkeypatch.setattr(batches, "MAX_PICTURES", 2)
    asked.clear()
    assert host.rank("a red circle", iter(discs), follow=asked.append) == pytest.approx(scores, abs=1e-5)
    assert len(asked) == 3
    assert host.rank("a red circle", []) == []
    with pytest.raises(MediaError, match=r"gone\.png"):
        host.rank("a red circle", [tmp_path / "gone.png"])


def test_pictures_of_other_libraries_are_taken(host: studio.Studio, discs: list[studio.Image]) -> None:
    scores = host.rank("a red circle", discs[:3])
    array = np.asarray(discs[1].pil)
    assert host.rank("a red circle", [discs[0].pil, array, array.transpose(2, 0, 1) / 255])[:2] == scores[:2]
    vectors = host.embed([discs[0], discs[0].pil, np.asarray(discs[0].pil)])
    assert len({each.sha256 for each in vectors}) == 1
    assert host.embed(discs[0].pil) == host.embed(np.asarray(discs[0].pil)) == vectors[0]
    with pytest.raises(InputError, match="or the path of a file, not int"):
        host.rank("a red circle", [discs[0], 3])  # type: ignore[list-item]


def test_labels_come_with_their_shares(host: studio.Studio, discs: list[studio.Image]) -> None:
    told = host.label(discs[:2], ["red circle", "blue circle"], top=2, priority="background")
    assert [row[0]["label"] for row in told] == ["red circle", "blue circle"]
    assert [sum(each["share"] for each in row) for row in told] == pytest.approx([1, 1], abs=1e-3)


def test_texts_and_pictures_are_embedded(
    host: studio.Studio, discs: list[studio.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods, "AT_ONCE", 2)
    red, blue, text = host.embed([discs[0], discs[1], "a red circle"])
    np.testing.assert_allclose([each.vector @ each.vector for each in (red, blue, text)], 1, atol=1e-4)
    assert red.vector @ text.vector > blue.vector @ text.vector
    np.testing.assert_allclose(host.embed("a red circle").vector, text.vector, atol=1e-5)
    assert host.store.path(text.sha256) is None
    assert host.store.path(host.embed("a red circle", stored=True).sha256) is not None
