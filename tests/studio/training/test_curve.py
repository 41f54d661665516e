"""A log becomes a picture: axes, one panel a column, whatever the numbers."""

from __future__ import annotations

import io
import math
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageColor
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from studio.training import curve

from . import tiny


def picture(folder: Path, log: str) -> PIL.Image.Image:
    (folder / "log.csv").write_text(log)
    data = curve.png(folder / "log.csv")
    assert data is not None
    image = PIL.Image.open(io.BytesIO(data))
    assert image.format == "PNG"
    return image.convert("RGB")


def painted(image: PIL.Image.Image, colour: str, box: tuple[int, int, int, int]) -> np.ndarray:
    """Rows (y, x) of the pixels of just this colour within the box, in the picture's coordinates."""
    found = np.argwhere((np.asarray(image.crop(box)) == PIL.ImageColor.getrgb(colour)).all(-1))
    return found + np.array([box[1], box[0]])


def test_a_run_leaves_its_curve(tmp_path: Path) -> None:
    tiny.finish(tiny.start(tmp_path, 12))
    with PIL.Image.open(tmp_path / "curve.png") as image:
        assert image.size == (800, 2 * 200 + 74)  # loss and size
        for colour in curve.COLOURS[:2]:
            assert len(painted(image.convert("RGB"), colour, (0, 0, *image.size))) > 50


def test_the_line_lies_where_the_values_are(tmp_path: Path) -> None:
    rows = "\n".join(f"{step},{step},{step / 10},{5 - step / 1000}" for step in range(0, 1000, 10))
    image = picture(tmp_path, f"step,seconds,up,down\n{rows}\n")
    for index, way in enumerate((1, -1)):
        line = painted(image, curve.COLOURS[index], (130, 0, 715, 474))
        left, right = line[line[:, 1] < 250, 0].mean(), line[line[:, 1] > 600, 0].mean()
        assert (left - right) * way > 60


def test_without_matplotlib_the_run_goes_on_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    tiny.finish(tiny.start(tmp_path, 12))
    tiny.start(tmp_path, 12).save()
    assert capsys.readouterr().err.count("note: no loss curve is drawn without matplotlib: `pip install") == 2
    assert not (tmp_path / "curve.png").exists()


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
    assert len(image.getcolors(1 << 18) or ()) > 2


@settings(max_examples=20)
@given(st.lists(st.floats(width=32), min_size=1, max_size=60))
def test_any_numbers_make_a_picture(values: list[float]) -> None:
    columns = {"step": np.arange(len(values), dtype=np.float64), "loss": np.array(values, np.float64)}
    assert curve.draw(columns).canvas.get_width_height() == (800, 274)


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
