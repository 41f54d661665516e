"""Pictures of a folder, opened a few at a time."""

from __future__ import annotations

import weakref
from pathlib import Path

import PIL.Image
import pytest

import studio
from studio.media.folders import few_at_a_time


def test_pictures_are_in_memory_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studio.media.folders.BATCH_PIXELS", 96 * 96 * 2)
    alive: weakref.WeakSet[studio.Image] = weakref.WeakSet()
    most = []
    paths = [tmp_path / f"{i}.png" for i in range(8)]
    for shade, path in enumerate(paths[:7]):
        PIL.Image.new("L", (96, 96), shade).save(path)

    def opened(path: Path) -> studio.Image:
        picture = studio.Image.open(path)
        alive.add(picture)
        most.append(len(alive))
        return picture

    broken: dict[Path, studio.StudioError] = {}
    assert [len(few) for few in few_at_a_time(paths, broken, opened)] == [2, 2, 2, 1]
    assert (max(most), list(broken)) == (2, [paths[7]])
