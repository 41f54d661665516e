"""A log becomes a picture: axes, one panel a column, whatever the numbers."""

from __future__ import annotations

import io
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from studio.training import curve

from . import tiny

PAPER = (255, 255, 255)


def picture(folder: Path, log: str) -> PIL.Image.Image:
    (folder / "log.csv").write_text(log)
    data = curve.png(folder / "log.csv")
    assert data is not None
    image = PIL.Image.open(io.BytesIO(data))
    assert image.format == "PNG"
    assert image.mode == "RGB"
    return image


def colours(image: PIL.Image.Image) -> set[object]:
    return {colour for _, colour in image.getcolors(1 << 16) or ()}


def painted(image: PIL.Image.Image, colour: tuple[int, int, int], box: tuple[int, int, int, int]) -> np.ndarray:
    """Rows (y, x) of the pixels of just this colour within the box, in the picture's coordinates."""
    found = np.argwhere((np.asarray(image.crop(box)) == colour).all(-1))
    return found + np.array([box[1], box[0]])


def test_a_run_leaves_its_curve(tmp_path: Path) -> None:
    tiny.finish(tiny.start(tmp_path, 12))
    with PIL.Image.open(tmp_path / "curve.png") as image:
        assert image.size == (800, 2 * 200 + 74)  # loss and size
        assert {curve.COLOURS[0], curve.COLOURS[1]} < colours(image)


def test_the_line_lies_where_the_values_are(tmp_path: Path) -> None:
    rows = "\n".join(f"{step},{step},{step / 10},{5 - step / 1000}" for step in range(0, 1000, 10))
    image = picture(tmp_path, f"step,seconds,up,down\n{rows}\n")
    assert image.size == (800, 474)
    for index, (first, last) in enumerate([(1, -1), (-1, 1)]):  # is the left end the lower one?
        top = curve.TOP + curve.PANEL * index
        line = painted(image, curve.COLOURS[index], (80, top + 24, 720, top + 192))
        left, right = line[line[:, 1] < 120, 0].mean(), line[line[:, 1] > 680, 0].mean()
        assert (left - right) * first > 100
        assert (right - left) * last > 100


def test_grid_frame_and_labels_stand_around_it(tmp_path: Path) -> None:
    image = picture(tmp_path, "step,seconds,loss\n" + "".join(f"{i},{i},{i % 7 + 1}\n" for i in range(50)))
    assert len(painted(image, curve.GRID, (80, 40, 720, 230))) > 1000
    assert (np.asarray(image.crop((0, 50, curve.LEFT - 4, 230))) < 128).any(), "labels of values"
    assert (np.asarray(image.crop((70, 236, 730, 274))) < 128).any(), "labels of steps"
    assert (np.asarray(image.crop((200, 5, 600, 30))) < 128).any(), "the title"


@pytest.mark.parametrize(
    "rows",
    [
        "49,1.5,2.5,nan",  # one row, one column without a finite value
        "49,1.5,0,0\n99,3.0,0,0",  # constant
        "49,1.5,nan,1\n99,3.0,2,inf\n149,4.5,nan,-inf\n199,6.0,3,2",
        "49,1.5,1e30,1e-30\n99,3.0,2,1e30",
        "49,nan,1,-1",
        "49,1.5,,word\n99,3.0,1,1",
        "49,1.5,1,1\n99,3.0,1\n149,4.5",  # rows cut short
        "7,1.5,1,1\n7,1.5,2,2",  # the same step twice
    ],
)
def test_any_rows_make_a_picture(tmp_path: Path, rows: str) -> None:
    image = picture(tmp_path, f"step,seconds,loss,other\n{rows}\n")
    assert image.size == (800, 474)
    assert len(colours(image)) > 2
    assert PAPER in colours(image)


@settings(max_examples=20)
@given(st.lists(st.floats(width=32), min_size=1, max_size=60))
def test_any_numbers_make_a_picture(values: list[float]) -> None:
    columns = {"step": np.arange(len(values), dtype=np.float64), "loss": np.array(values, np.float64)}
    assert curve.draw(columns).size == (800, 274)


@pytest.mark.parametrize("log", [None, "", "step,seconds,loss\n", "step,seconds,loss\n49,1\n", "a,b\n1,2\n"])
def test_without_a_row_there_is_no_picture(tmp_path: Path, log: str | None) -> None:
    if log is not None:
        (tmp_path / "log.csv").write_text(log)
    assert curve.png(tmp_path / "log.csv") is None
    with pytest.raises(SystemExit, match="is not a log, or has no rows"):
        curve.main([str(tmp_path / "log.csv"), str(tmp_path / "curve.png")])


def test_as_a_program(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("step,seconds,loss\n49,1,2\n99,2,1\n")
    curve.main([str(tmp_path / "log.csv"), str(tmp_path / "curve.png")])
    with PIL.Image.open(tmp_path / "curve.png") as image:
        assert image.size == (800, 274)


@given(st.lists(st.floats(-1e6, 1e6) | st.sampled_from([math.nan, math.inf]), min_size=1, max_size=200))
def test_smooth_equals_the_slow_mean(values: list[float]) -> None:
    reach = len(values) // 40
    made = curve.smooth(np.array(values))
    for index, value in enumerate(values):
        near = [v for v in values[max(index - reach, 0) : index + reach + 1] if math.isfinite(v)]
        if math.isfinite(value):
            assert made[index] == pytest.approx(sum(near) / len(near), rel=1e-9, abs=1e-6)
        else:
            assert math.isnan(made[index])


@given(low=st.floats(-1e9, 1e9), span=st.floats(1e-6, 1e9), most=st.integers(2, 12))
def test_ticks_are_round_rising_and_within(low: float, span: float, most: int) -> None:
    high = low + span
    assume(span > 1e-12 * abs(high))  # `Axis` spreads what is nearer
    made = curve.ticks(low, high, most)
    assert len(made) <= most
    assert all(before < after for before, after in pairwise(made))
    slack = 1e-6 * span + 1e-12 * abs(low)
    assert all(low - slack <= tick <= high + slack for tick in made)


@given(low=st.floats(1e-30, 1e30), ratio=st.floats(10, 1e12))
def test_log_ticks_are_within(low: float, ratio: float) -> None:
    made = curve.log_ticks(low, low * ratio)
    assert made == sorted(made)
    assert 1 <= len(made) <= 12
    assert all(low * 0.99 <= tick <= low * ratio * 1.01 for tick in made)
