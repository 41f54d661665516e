"""Loss curves: a run's `log.csv` as a PNG, one panel per column, drawn with matplotlib (`multimodal-studio[train]`).

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
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from studio.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Values = NDArray[np.float64]
COLOURS = ("#1f5ea8", "#c84828", "#268054", "#8448a0", "#966e14")
MISSING = "no loss curve is drawn without matplotlib: `pip install 'multimodal-studio[train]'`"


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


def draw(columns: dict[str, Values]) -> Figure:
    """The figure of a log's columns (`read`); `step` is the x axis, `seconds` is in the title. It is 800 pixels wide,
    and 200 high for each column besides 74 for title and axis.

    Raises ValueError if there is no row with a finite `step`, and ImportError without matplotlib.
    """
    from matplotlib.figure import Figure

    x, seconds = columns["step"], columns.get("seconds")
    if not np.isfinite(x).any():
        raise ValueError("the log has no rows")
    names = [name for name in columns if name not in ("step", "seconds")]
    height = 2 * len(names) + 0.74  # inches, at 100 pixels
    figure = Figure(figsize=(8, height), dpi=100)
    figure.subplots_adjust(left=0.09, right=0.9, top=1 - 0.6 / height, bottom=0.5 / height, hspace=0.25)
    minutes = np.nanmax(seconds) / 60 if seconds is not None and np.isfinite(seconds).any() else 0.0
    time = f"{minutes:.1f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"
    figure.suptitle(f"{int(x[np.isfinite(x)].max()) + 1:,} steps · {time}", fontsize=11, y=1 - 0.15 / height, va="top")
    panels = figure.subplots(max(len(names), 1), sharex=True, squeeze=False)[:, 0]
    for index, (name, panel) in enumerate(zip(names, panels, strict=False)):
        _panel(panel, name, x, columns[name], COLOURS[index % len(COLOURS)])
    panels[-1].set_xlabel("step")
    return figure


def _panel(panel: Any, name: str, x: Values, values: Values, colour: str) -> None:
    """Plot one column."""
    panel.set_title(name, color=colour, loc="left", fontsize=9)
    panel.grid(color="#e2e2e2")
    mean = smooth(values)
    known = mean[np.isfinite(mean)]
    if not len(known):
        panel.text(0.5, 0.5, "no finite value", transform=panel.transAxes, ha="center", va="center")
        return
    if known.min() > 0 and known.max() > 10 * known.min():
        panel.set_yscale("log")
    few = "." if len(known) < 3 else ""  # a line of one point is not seen
    panel.plot(x, np.where(np.isfinite(values), values, np.nan), color=colour, alpha=0.25, linewidth=1)
    panel.plot(x, mean, color=colour, linewidth=2, marker=few)
    margin = 0.1 * float(np.ptp(known)) or abs(float(known[0])) / 10 or 1.0  # outliers of single steps are cut off
    if panel.get_yscale() == "log":
        panel.set_ylim(known.min() / 1.2, known.max() * 1.2)
    else:
        panel.set_ylim(known.min() - margin, known.max() + margin)
    panel.annotate(f"{known[-1]:.4g}", (1.01, known[-1]), xycoords=("axes fraction", "data"), color=colour, va="center")


def png(log: Path) -> bytes | None:
    """The curve of a log as PNG bytes; None if the log is missing or empty. Raises ImportError without matplotlib."""
    columns = read(log) if log.exists() else {}
    if not np.isfinite(columns.get("step", np.array([]))).any():
        return None
    out = io.BytesIO()
    draw(columns).savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def main(argv: Sequence[str]) -> None:
    """Draw the log named first into the file named second."""
    data = png(Path(argv[0]))
    if data is None:
        raise SystemExit(f"error: `{argv[0]}` is not a log, or has no rows")
    write_atomically(argv[1], data)


if __name__ == "__main__":
    main(sys.argv[1:])
