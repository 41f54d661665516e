"""`studio image` with `--best`, on the starter."""

from __future__ import annotations

import studio

from ..conftest import Command


def test_the_best_picture_is_kept(command: Command) -> None:
    made = command("image", "a red apple", "-n", "2", "--best", "1", "--steps", "1", "--size", "64x64", "-o", "a.png",
                   "--json")  # fmt: skip
    (kept,) = made.told
    assert (made.code, kept["path"]) == (0, "a.png")
    assert studio.Image.open("a.png").sha256 == kept["sha256"]
    assert -1 <= kept["score"] <= 1


def test_no_more_are_kept_than_are_made(command: Command) -> None:
    ran = command("image", "an apple", "-n", "2", "--best", "3")
    assert (ran.code, ran.out) == (2, "")
    assert "`--best` is 3; it must be at most the number of pictures, 2" in ran.err
