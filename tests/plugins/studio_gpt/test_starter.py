"""The text model that ships: whole, small, and the default of `text`."""

from __future__ import annotations

import subprocess

import pytest

from studio.cli.main import run
from studio_gpt.load import find
from studio_gpt.text import STARTER


def test_it_is_whole_and_small() -> None:
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=STARTER, check=True, capture_output=True)
    assert sum(file.stat().st_size for file in STARTER.iterdir()) <= 12 << 20
    tokens = find(STARTER).tokens()
    assert tokens.decode(tokens.encode("ein roter Apfel, 红苹果 🍎")) == "ein roter Apfel, 红苹果 🍎"


def test_it_answers_an_idea_with_a_name_and_what_it_looks_like(capfd: pytest.CaptureFixture[str]) -> None:
    for idea in ("a loyal pet that barks and wags its tail", "狗", "dog"):
        assert run(["text", idea, "--chat", "--temperature", "0", "--max-tokens", "48"]) == 0
        name, _, looks = capfd.readouterr().out.strip().partition(", ")
        assert name == "dog"
        assert looks


def test_it_goes_on_from_a_text_and_says_nothing_of_room_that_it_does_not_need(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert run(["text", "It was a very", "--temperature", "0", "--stop", "."]) == 0
    written, told = capfd.readouterr()
    assert len(written.split()) > 3
    assert "room" not in told
