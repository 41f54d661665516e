"""Learning curves: a run's `log.csv` as a PNG, one panel per column, drawn with Pillow.

Each panel has the values in a pale colour, their centred moving average, its last value at the right, and its own axis,
logarithmic if positive values span more than a factor of ten. Values that are not finite are gaps.

Try it: `python -m studio.training.curve training/text/log.csv curve.png`
"""

from __future__ import annotations

import csv
import io
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from numpy.typing import NDArray

from studio.files import write_atomically

Values = NDArray[np.float64]

WIDTH, PANEL, TOP, BOTTOM, LEFT, RIGHT = 800, 200, 34, 40, 70, 70
"""In pixels: the picture's width, a panel's height with its gap, and the margins."""

SCALE = 2
"""Supersampling: Pillow's lines are not antialiased."""

INK, GRID, PAPER = (60, 60, 60), (226, 226, 226), (255, 255, 255)
COLOURS = ((31, 94, 168), (200, 72, 40), (38, 128, 84), (132, 72, 160), (150, 110, 20))


def read(log: Path) -> dict[str, Values]:
    """The columns of a log by name; truncated rows are skipped, invalid numbers are NaN."""
    with log.open(newline="", encoding="utf-8") as file:
        header, *rows = list(csv.reader(file)) or [[]]
    whole = [[_number(cell) for cell in row] for row in rows if len(row) == len(header)]
    table = np.array(whole, np.float64).reshape(len(whole), len(header))
    return {name: table[:, index] for index, name in enumerate(header)}


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan


def smooth(values: Values) -> Values:
    """The centred moving average of the finite values over about a twentieth of all; NaN where a value is not finite.

    Each window is summed separately: a running sum would keep the rounding error of a loss of 1e30.
    """
    finite = np.isfinite(values)
    window = np.ones(2 * (len(values) // 40) + 1)
    sums = np.convolve(np.where(finite, values, 0.0), window, "same")
    return np.where(finite, sums / np.maximum(np.convolve(finite, window, "same"), 1), np.nan)


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from `low` to `high`, at most `most`: multiples of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(power * m for m in (1, 2, 5, 10, 20) if (high - low) / (power * m) <= most - 1)
    return [step * i for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers from `low` to `high` on a logarithmic axis: 1, 2, 5, or only powers of ten over more than three
    decades.
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = -(-(last - first) // 8)
    steps = (1, 2, 5) if last - first <= 3 else (1,)
    made = [m * 10.0**power for power in range(first, last + 1, every) for m in steps]
    return [value for value in made if low * 0.999 <= value <= high * 1.001]


class Axis:
    """A linear or logarithmic map from values to pixels; an empty range is widened."""

    def __init__(self, values: Values, start: int, end: int, logarithmic: bool = False) -> None:
        """`values` are finite, one or more; `start` is the pixel of the lowest, `end` of the highest."""
        low, high = float(values.min()), float(values.max())
        if high - low <= 1e-12 * abs(high):  # also ranges below the precision of float64
            low, high = low - (abs(low) / 10 or 1.0), high + (abs(high) / 10 or 1.0)
        self.low, self.high, self.start, self.end, self.logarithmic = low, high, start, end, logarithmic

    def __call__(self, values: Values) -> Values:
        """The pixels of values; not clipped, and NaN stays NaN."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high = math.log10(low), math.log10(high)
            values = np.log10(np.maximum(values, 1e-300))
        return self.start + (values - low) / (high - low) * (self.end - self.start)

    def ticks(self, most: int) -> list[float]:
        """Round numbers along the axis."""
        few = log_ticks(self.low, self.high) if self.logarithmic else []
        return few if len(few) >= 2 else ticks(self.low, self.high, most)


def _line(draw: PIL.ImageDraw.ImageDraw, x: Values, y: Values, colour: tuple[int, int, int], width: int) -> None:
    """A line through the finite points; a point between gaps is a dot."""
    finite = np.isfinite(y)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], finite, [False]])))
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        points = list(zip(x[start:end].tolist(), y[start:end].tolist(), strict=True))
        if len(points) > 1:
            draw.line(points, fill=colour, width=width, joint="curve")
        else:
            draw.circle(points[0], 2 * width, fill=colour)


def _panel(name: str, steps: Axis, x: Values, values: Values, colour: tuple[int, int, int]) -> PIL.Image.Image:
    """One column's plot, (WIDTH, PANEL) times SCALE, without the axis of steps."""
    image = PIL.Image.new("RGB", (WIDTH * SCALE, PANEL * SCALE), PAPER)
    draw = PIL.ImageDraw.Draw(image)
    font = PIL.ImageFont.load_default(12 * SCALE)
    top, bottom = 24 * SCALE, (PANEL - 8) * SCALE
    draw.text((steps.start, 4 * SCALE), name, colour, font)
    mean = smooth(values)
    known = mean[np.isfinite(mean)]
    if len(known):
        pale = tuple((3 * 255 + part) // 4 for part in colour)
        spans = known.min() > 0 and known.max() > 10 * known.min()
        axis = Axis(known, bottom - 6 * SCALE, top + 6 * SCALE, bool(spans))
        for tick in axis.ticks(5):
            y = float(axis(np.array(tick)))
            draw.line([(steps.start, y), (steps.end, y)], GRID, SCALE)
            draw.text((steps.start - 6 * SCALE, y), f"{tick:.6g}", INK, font, anchor="rm")
        inside = np.where(np.isfinite(values), np.clip(axis(values), top, bottom), np.nan)
        _line(draw, steps(x), inside, (pale[0], pale[1], pale[2]), SCALE)
        _line(draw, steps(x), axis(mean), colour, 2 * SCALE)
        last = np.flatnonzero(np.isfinite(mean))[-1]
        draw.text((steps.end + 6 * SCALE, float(axis(mean[last]))), f"{mean[last]:.4g}", colour, font, anchor="lm")
    else:
        draw.text((WIDTH * SCALE / 2, PANEL * SCALE / 2), "no finite value", INK, font, anchor="mm")
    draw.rectangle([steps.start, top, steps.end, bottom], outline=INK, width=SCALE)
    return image


def draw(columns: dict[str, Values]) -> PIL.Image.Image:
    """The picture of a log's columns (`read`); `step` is the x axis, `seconds` is in the title.

    Returns:
        An RGB picture 800 pixels wide, 200 high for each column besides 74 for title and axis.

    Raises:
        ValueError: there is no row with a finite `step`.
    """
    x, seconds = columns["step"], columns.get("seconds")
    if not np.isfinite(x).any():
        raise ValueError("the log has no rows")
    names = [name for name in columns if name not in ("step", "seconds")]
    height = TOP + PANEL * len(names) + BOTTOM
    image = PIL.Image.new("RGB", (WIDTH * SCALE, height * SCALE), PAPER)
    pen = PIL.ImageDraw.Draw(image)
    font = PIL.ImageFont.load_default(12 * SCALE)
    steps = Axis(x[np.isfinite(x)], LEFT * SCALE, (WIDTH - RIGHT) * SCALE)
    minutes = np.nanmax(seconds) / 60 if seconds is not None and np.isfinite(seconds).any() else 0.0
    time = f"{minutes:.1f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"
    title = f"{int(x[np.isfinite(x)].max()) + 1:,} steps · {time}"
    pen.text((WIDTH * SCALE / 2, 10 * SCALE), title, INK, PIL.ImageFont.load_default(14 * SCALE), anchor="mt")
    for index, name in enumerate(names):
        panel = _panel(name, steps, x, columns[name], COLOURS[index % len(COLOURS)])
        image.paste(panel, (0, (TOP + PANEL * index) * SCALE))
    foot = (height - BOTTOM) * SCALE
    for tick in steps.ticks(10):
        at = float(steps(np.array(tick)))
        pen.line([(at, foot - 8 * SCALE), (at, foot - 4 * SCALE)], INK, SCALE)
        pen.text((at, foot), f"{tick:,.6g}" if tick % 1 else f"{tick:,.0f}", INK, font, anchor="mt")
    pen.text((WIDTH * SCALE / 2, foot + 18 * SCALE), "step", INK, font, anchor="mt")
    return image.resize((WIDTH, height), PIL.Image.Resampling.BOX)


def png(log: Path) -> bytes | None:
    """The curve of a log as PNG bytes; None if the log is missing or empty."""
    columns = read(log) if log.exists() else {}
    if not np.isfinite(columns.get("step", np.array([]))).any():
        return None
    out = io.BytesIO()
    draw(columns).save(out, "PNG")
    return out.getvalue()


def main(argv: Sequence[str]) -> None:
    """Draw the log named first into the file named second."""
    data = png(Path(argv[0]))
    if data is None:
        raise SystemExit(f"error: `{argv[0]}` is not a log, or has no rows")
    write_atomically(argv[1], data)


if __name__ == "__main__":
    main(sys.argv[1:])
