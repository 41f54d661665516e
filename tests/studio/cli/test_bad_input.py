"""Bad input: one clear line and a hint, 2 for usage and 1 for failure, no traceback, nothing half-written."""

from __future__ import annotations

import os
import resource
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from studio.media.png import SIGNATURE

from .conftest import PROBE, Studio, files

Start = Callable[..., subprocess.Popen[str]]


@pytest.mark.parametrize(
    ("argv", "message", "hint"),
    [
        ("image-less", "no command is called `image-less`", "`image`"),
        ("generate ehco hi", "no generator is called `ehco`", "did you mean `echo`?"),
        ("generate echo hi --tmies 2", "`studio generate echo` has no option `--tmies`", "did you mean `--times`?"),
        ("generate echo hi --model x", "`studio generate echo` has no option `--model`", "echo --help`"),
        ("run best", "`prompt` is missing", "write `-p prompt=…`; `studio flow check best` lists"),
        ("resume", "no unfinished requests", ""),
        ("--plugn x", "`studio` has no option `--plugn`", "did you mean `--plugin`?"),
        ("generate echo", "`text` is missing", "give `text`, text of 1 to 40 characters"),
        ("generate echo hi there", "unexpected argument `there`", "`studio generate echo --help`"),
        ("generate echo hi --times 0", "`times` is '0', but must be a whole number from 1 to 9", ""),
        ("generate echo hi --times -3", "`times` is '-3', but must be a whole number from 1 to 9", ""),
        ("generate echo hi --times many", "`times` is 'many', but must be a whole number from 1 to 9", ""),
        ("generate echo hi --weight nan", "`weight` is 'nan', but must be a finite number of at least 0", ""),
        ("generate echo hi --weight inf", "`weight` is 'inf', but must be a finite number of at least 0", ""),
        ("generate echo hi --style bold", "`style` is 'bold', but must be one of `plain`, `fancy`", ""),
        ("generate echo " + "x" * 41, "text of 1 to 40 characters", ""),
        ("generate dot x --side 9", "`side` is '9', but must be a whole number from 1 to 4096, a multiple of 8", ""),
        ("generate echo hi --seed -1", "`seed` is -1, but must be a whole number from 0", ""),
        ("generate echo hi --seed 9223372036854775807 -n 2", "`seed` is 9223372036854775807, but must be at most", ""),
        ("generate echo hi -n 0", "Invalid value for '-n': 0", "--help"),
        ("generate echo hi -n 2 -o one.txt", "`-o one.txt` names one file, but there are 2 outputs", "`-o one/`"),
        ("generate dot x -o dot.jpg", "`-o dot.jpg`: output files are .png, .avif, not .jpg", "`-o dot.png`"),
        (
            "generate echo hi --device quantum",
            "the device is `quantum`; it must be `cpu`, `cuda`, `mps`, `xpu`, optionally with a number",
            "",
        ),
        ("generate echo hi --home", "`--home` needs a value", ""),
        ("show", "Missing argument 'FILE|ID'", "`studio show --help`"),
        ("show 12ab", "the id `12ab` is too short", "at least 6 characters"),
        ("show nothing.png", "there is no file `nothing.png`", "an artifact's id"),
        ("replay .", "`.` is a folder", "an artifact's id"),
        ("train lessno", "no training recipe is called `lessno`", "did you mean `lesson`?"),
        ("train lesson --topic x --hours 0", "`hours` is '0', but must be a finite number above 0", ""),
    ],
)
def test_usage_errors_exit_with_2(studio: Studio, argv: str, message: str, hint: str) -> None:
    ran = studio(*argv.split())
    _is_one_clear_error(ran.code, ran.err, 2, message, hint)
    assert ran.out == ""
    assert files(Path()) == []


def test_an_empty_prompt_is_refused(studio: Studio) -> None:
    ran = studio("generate", "dot", "")
    _is_one_clear_error(ran.code, ran.err, 2, "`prompt` is '', but must be text of at least 1 characters", "")


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("taken/x.png", "cannot write into the folder `taken`: Not a directory"),
        ("taken/deeper/", "cannot create the folder `taken/deeper`: Not a directory"),
        ("missing/x.png", "cannot write into the folder `missing`: No such file or directory"),
        ("/proc/x.png", "cannot write into the folder `/proc`"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_any_work(
    studio: Studio, own_home: Path, output: str, message: str
) -> None:
    Path("taken").write_text("a file")
    ran = studio("generate", "dot", "x", "-o", output)
    _is_one_clear_error(ran.code, ran.err, 1, message, "")
    assert files(Path()) == ["taken"]
    assert files(own_home) == []


def test_a_home_that_is_a_file_is_a_failure(studio: Studio) -> None:
    Path("home").write_text("a file")
    ran = studio("generate", "dot", "x", "--home", "home")
    _is_one_clear_error(ran.code, ran.err, 1, "cannot create the folder `", "")


def test_a_full_disk_leaves_nothing_half_written(start: Start, own_home: Path, tmp_path: Path) -> None:
    def nearly_full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))  # the write fails as it does on a full disk

    words = ["generate", "dot", "x", "--side", "2048", "--seed", "77", "-q", "-o", "dot.png"]
    process = start(*words, preexec_fn=nearly_full)
    out, err = process.communicate(timeout=500)
    _is_one_clear_error(process.returncode, err, 1, "cannot write `", "")
    assert out == ""
    assert files(tmp_path / "outside") == []
    assert [name for name in files(own_home) if not name.endswith(".json")] == []


def test_standard_output_that_is_full_is_a_failure(start: Start) -> None:
    with open("/dev/full", "w") as full:
        process = start("plugins", stdout=full)
        _, err = process.communicate(timeout=500)
    _is_one_clear_error(process.returncode, err, 1, "No space left on device", "")


def test_a_reader_that_has_gone_is_no_error(start: Start) -> None:
    process = start("plugins")
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=500) == 141
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()


def _png(width: int, height: int) -> bytes:
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = b"IDAT" + zlib.compress(b"\0" * 100)
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (head, rows, b"IEND")]
    return SIGNATURE + b"".join(chunks)


@pytest.mark.parametrize("command", ["replay", "show"])
def test_damaged_pictures_are_refused(studio: Studio, command: str) -> None:
    assert studio("generate", "dot", "x", "--side", "64", "-o", "dot.png").code == 0
    whole = Path("dot.png").read_bytes()
    hostile = {
        "huge.png": (_png(100_000, 100_000), "the limit is 50,000,000"),
        "short.png": (_png(64, 64), "truncated, damaged"),
        "cut.png": (whole[: len(whole) - 40], "cannot read `cut.png` as a picture"),
        "header.png": (whole[:20], "cannot read `header.png` as a picture"),
        "empty.png": (b"", "cannot read `empty.png` as a picture"),
        "text.png": (b"hello", "not in a supported format"),
    }
    for name, (data, message) in hostile.items():
        Path(name).write_bytes(data)
        ran = studio(command, name)
        _is_one_clear_error(ran.code, ran.err, 1, message, "")


def test_a_picture_from_elsewhere_cannot_be_replayed(studio: Studio) -> None:
    Path("plain.png").write_bytes(_plain_png())
    ran = studio("replay", "plain.png")
    _is_one_clear_error(ran.code, ran.err, 1, "`plain.png` has no recipe", "dropped the recipe")
    shown = studio("show", "plain.png")
    assert shown.code == 0
    assert "has no recipe" in shown.err


def _plain_png() -> bytes:
    from PIL import Image

    from studio.media import Image as Picture

    return Picture(Image.new("RGB", (4, 4))).data


def test_an_unexpected_error_is_one_line_and_debug_shows_the_rest(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: object) -> None:
        raise RuntimeError("a bug\nof ours")

    monkeypatch.setattr("studio.api.Studio.doctor", broken)
    ran = studio("doctor")
    _is_one_clear_error(ran.code, ran.err, 1, r"RuntimeError: a bug\nof ours", "--debug")
    assert "Traceback (most recent call last)" in studio("doctor", "--debug").err


def test_a_plugin_that_is_not_there_is_named(studio: Studio) -> None:
    ran = studio("plugins", plugin=Path("nowhere.py"))
    _is_one_clear_error(ran.code, ran.err, 2, "the plugin `nowhere.py` does not exist", "file or a folder")


def test_a_broken_plugin_costs_only_itself(studio: Studio) -> None:
    Path("broken.py").write_text("import nothing_of_that_name\n")
    listed = studio("plugins", "--plugin", "broken.py")
    assert listed.code == 0
    rows = {line.split("\t")[0]: line for line in listed.lines}
    assert "failed" in rows["broken"]
    assert "No module named 'nothing_of_that_name'" in rows["broken"]
    assert "\tok\t" in rows[PROBE.stem]
    assert studio("generate", "echo", "hi", "--plugin", "broken.py").code == 0
    missing = studio("generate", "lost", "hi", "--plugin", "broken.py")
    _is_one_clear_error(missing.code, missing.err, 2, "no generator is called `lost`", "plugin `broken` failed: Module")


def test_a_word_that_is_not_unicode_is_refused(studio: Studio) -> None:
    ran = studio("generate", "echo", os.fsdecode(b"caf\xe9"))
    _is_one_clear_error(ran.code, ran.err, 2, "`text` has a lone surrogate, U+DCE9 at character 4", "")


def _is_one_clear_error(code: int, err: str, expected: int, message: str, hint: str) -> None:
    lines = [line for line in err.splitlines() if not line.startswith(("regenerating", "a stray print"))]
    assert code == expected, err
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert len(lines) <= 2
    assert all(line.startswith("hint: ") for line in lines[1:])
    assert hint in (lines[1] if lines[1:] else "")
