"""What is written: safe text, tables, and progress without a terminal and with one."""

from __future__ import annotations

import os
import pty
import subprocess
import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio.cli.lib.output import emit, emit_json, printable, table
from studio.cli.lib.progress import LINE_EVERY_S, ROWS, Display
from studio.engine import Failed, Finished, Loading, Progress, Started
from studio.errors import StudioError
from studio.media import Text


@given(st.text() | st.binary().map(lambda data: data.decode("utf-8", "surrogateescape")))
def test_printable_holds_nothing_that_a_terminal_obeys(text: str) -> None:
    shown = printable(text)
    bad = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert all(c == "\u200d" or unicodedata.category(c) not in bad for c in shown)
    kept = [c for c in text if unicodedata.category(c) not in bad]
    assert "".join(kept) == text or len(shown) >= len(text)


@pytest.mark.parametrize("text", ["a red apple", "一个红苹果", "👩\u200d🚀", "naïve"])
def test_printable_leaves_words_as_they_are(text: str) -> None:
    assert printable(text) == text


def test_a_table_without_a_terminal_is_tab_separated(capsys: pytest.CaptureFixture[str]) -> None:
    table(("a", "b"), [("1", "two\twords"), ("3", "")])
    assert capsys.readouterr().out == "1\ttwo\\twords\n3\t\n"


def test_data_for_a_program_are_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    emit("odd\x1bname")
    emit_json({"name": "odd\x1bname"})
    assert capsys.readouterr().out == 'odd\x1bname\n{\n  "name": "odd\\u001bname"\n}\n'


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_without_a_terminal_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Display([7, 8, 9], clock=clock) as display:
        assert not display.drawn
        display.show(0, Loading(generator="image", device="cpu"))
        clock.now += LINE_EVERY_S
        display.show(1, Loading(generator="image", device="cpu"))
        display.show(0, Started(steps=20))
        display.show(1, Started(steps=20))
        clock.now += LINE_EVERY_S
        display.show(0, Progress(position=5, steps=20, elapsed_s=1.0, eta_s=75.4))
        display.show(1, Progress(position=5, steps=20, elapsed_s=1.0, eta_s=75.4))
        display.show(0, Progress(position=20, steps=20, elapsed_s=4.0, eta_s=0.0))
        clock.now += LINE_EVERY_S
        display.show(1, Progress(position=20, steps=20, elapsed_s=4.0, eta_s=0.0))
        clock.now += LINE_EVERY_S
        display.show(0, Finished(media=Text("x")))
        clock.now += LINE_EVERY_S
        display.show(1, Failed(error=StudioError("no")))
        clock.now += LINE_EVERY_S
        display.show(2, Finished(media=Text("x")))  # nothing is left to wait for
    assert capsys.readouterr().err.splitlines() == [
        "0 of 3 done, loading image on cpu",
        "0 of 3 done, step 5 of 60, 1 min 15 s left",
        "0 of 3 done, step 40 of 60, finishing",
        "1 of 3 done, step 40 of 60, finishing",
        "1 of 3 done, 1 failed, step 40 of 60, waiting",
    ]


def test_quiet_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Display([7], quiet=True, clock=clock) as display:
        clock.now += 100
        display.show(0, Started(steps=20))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("count", [2, ROWS + 1], ids=["a bar each", "one bar for many"])
def test_a_terminal_gets_bars_and_the_pipe_only_paths(start: Callable[..., subprocess.Popen[str]], count: int) -> None:
    screen, terminal = pty.openpty()
    process = start("generate", "slow", "-n", str(count), "--seed", "40", "-o", "out/", stderr=terminal)
    os.close(terminal)
    drawn = b""
    while True:
        try:
            part = os.read(screen, 4096)
        except OSError:  # Linux's answer when the other end is closed
            break
        if not part:
            break
        drawn += part
    os.close(screen)
    out, _ = process.communicate(timeout=500)
    assert process.returncode == 0
    assert len(out.splitlines()) == count
    assert all(line.startswith("out/slow-") for line in out.splitlines())
    assert (b"seed 40" if count <= ROWS else b"of %d done" % count) in drawn
