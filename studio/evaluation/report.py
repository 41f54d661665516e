"""The report of an evaluation: Markdown with a plot and contact sheets, and JSON.

Try it: ``studio eval dcgan --data pictures -o report``
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from studio.evaluation.measure import Figure
from studio.evaluation.run import Evaluation
from studio.files import make_folder, write_atomically
from studio.media import Image
from studio.media.sheet import contact_sheet

if TYPE_CHECKING:
    from numpy.typing import NDArray


SHOWN, PAIRS = 64, 24  # pictures of the contact sheet, pairs of the neighbours' sheet
WIDTH, HEIGHT, MARGIN, BINS = 800, 260, 40, 40  # of the plot, in pixels, and its bars
INK, MADE, OWN = (60, 60, 60), (31, 94, 168), (200, 72, 40)
WORDS = {"quality": "Quality", "diversity": "Diversity", "copying": "Copying", "speed": "Speed"}


def speed_figures(evaluation: Evaluation) -> list[Figure]:
    """The speed measurements as figures."""
    found = evaluation.speed
    if found is None:
        return []
    return [
        Figure("first picture", "speed", found.first_s, better="less", unit="s"),
        Figure(f"each of {found.count} together", "speed", found.each_s, better="less", unit="s"),
        Figure("peak memory", "speed", found.peak / 2**20, better="less", unit="MiB"),
    ]


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Setup and figures as JSON; `interval` is the 95% interval, or null."""
    figures = [
        {"name": each.name, "group": each.group, "value": each.value, "interval": each.interval, "better": each.better,
         "unit": each.unit, "gates": each.gates}
        for each in (*evaluation.figures, *speed_figures(evaluation))
    ]  # fmt: skip
    return {"setup": evaluation.setup, "figures": figures, "notices": list(evaluation.notices)}


def rows(evaluation: Evaluation) -> list[tuple[str, str, str, str]]:
    """A table for users: group, metric, value with interval, and which direction is better."""
    every = (*evaluation.figures, *speed_figures(evaluation))
    return [(each.group, each.name, shown(each), each.better or "-") for each in every]


def shown(figure: Figure) -> str:
    """`12.3 (10.1 to 14.5) %`."""
    low_high = f" ({_number(figure.interval[0])} to {_number(figure.interval[1])})" if figure.interval else ""
    unit = f" {figure.unit}" if figure.unit and figure.unit != "cosine" else ""
    return f"{_number(figure.value)}{low_high}{unit}"


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


FILES = ("report.md", "result.json", "sheet.png", "nearest.png", "plot.png")
"""What `write` writes."""


def write(evaluation: Evaluation, folder: Path, *, overwrite: bool = True) -> Path:
    """Write the files of a report and return the path of `report.md`. Raises FileTaken without `overwrite`."""
    make_folder(folder)
    result = json.dumps(as_json(evaluation), ensure_ascii=False, indent=1) + "\n"
    write_atomically(folder / "result.json", result.encode(), overwrite=overwrite)
    _sheet(evaluation).save(folder / "sheet.png", overwrite=overwrite)
    _pairs(evaluation).save(folder / "nearest.png", overwrite=overwrite)
    Image(plot(evaluation.nearest.cosine, evaluation.nearest.own)).save(folder / "plot.png", overwrite=overwrite)
    return write_atomically(folder / "report.md", markdown(evaluation).encode(), overwrite=overwrite)


def markdown(evaluation: Evaluation) -> str:
    """The report as Markdown, with the names of the pictures that `write` writes."""
    setup, reference = evaluation.setup, evaluation.setup["reference"]
    asked = ", ".join(f"{name}={value}" for name, value in setup["inputs"].items()) or "its own settings"
    weights = ", ".join(f"{name} {digest[:12]}" for name, digest in setup["encoder"].get("weights", {}).items())
    side = setup["size"]
    setup_text = (
        f"{setup['pictures']} pictures with {asked}, seeds from {setup['seed']}, compared with {reference['pictures']}"
        f" reference pictures of {reference['labels']} labels. All are resized to {side}x{side} on white (Lanczos). The"
        f" encoder is `{setup['encoder'].get('generator')}`, {weights}. Intervals are 95% bootstrap intervals over the"
        " generated pictures."
    )
    lines = [
        f"# `{evaluation.generator}`", "", setup_text, "",
        "| | figure | value | better |", "|---|---|---|---|",
        *(f"| {WORDS[group]} | {name} | {value} | {better} |" for group, name, value, better in rows(evaluation)), "",
        f"![The first {min(SHOWN, len(evaluation.pictures))} pictures, none chosen](sheet.png)", "",
        "The generated pictures nearest to a reference picture, each with it:", "", "![pairs](nearest.png)", "",
        "Cosine similarity of generated pictures with their nearest reference picture, and of reference pictures with"
        " each other:",
        "", "![histogram of cosines](plot.png)", "",
        *evaluation.notices,
    ]  # fmt: skip
    return "\n".join(lines).rstrip() + "\n"


def _sheet(evaluation: Evaluation) -> Image:
    return contact_sheet(evaluation.pictures[:SHOWN], evaluation.wanted[:SHOWN], columns=8, cell=96)


def _pairs(evaluation: Evaluation) -> Image:
    """Generated pictures, each followed by its nearest reference picture."""
    near, reference = evaluation.nearest, evaluation.reference
    names = reference.labels or ["reference"] * len(reference.images)
    images, labels = [], []
    for place in np.argsort(-near.cosine, kind="stable")[:PAIRS].tolist():
        images += [evaluation.pictures[place], reference.images[near.place[place]]]
        labels += [f"made {near.cosine[place]:.3f}", names[near.place[place]]]
    return contact_sheet(images, labels, columns=8, cell=96)


def plot(made: NDArray[np.float64], own: NDArray[np.float64]) -> PIL.Image.Image:
    """Two normalized histograms of cosine similarities in one plot."""
    low = float(min(made.min(), own.min(), 0.999))
    edges = np.linspace(low, 1.0, BINS + 1)
    heights = [np.histogram(np.clip(each, low, 1), edges)[0] / len(each) for each in (made, own)]
    top = max(float(each.max()) for each in heights)
    picture = PIL.Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen = PIL.ImageDraw.Draw(picture)
    font: Any = PIL.ImageFont.load_default(12)
    inner, floor = WIDTH - 2 * MARGIN, HEIGHT - MARGIN
    for shares, colour in zip(heights, (MADE, OWN), strict=True):
        points: list[tuple[float, float]] = [(MARGIN, floor)]
        for place, share in enumerate(shares):
            y = floor - float(share) / top * (floor - MARGIN)
            points += [(MARGIN + inner * place / BINS, y), (MARGIN + inner * (place + 1) / BINS, y)]
        pen.line([*points, (MARGIN + inner, floor)], fill=colour, width=2)
    pen.line([(MARGIN, floor), (MARGIN + inner, floor)], fill=INK)
    for share in np.linspace(0, 1, 6):
        x = MARGIN + inner * share
        pen.text((x, floor + 6), f"{low + (1 - low) * share:.2f}", fill=INK, font=font, anchor="ma")
    pen.text((MARGIN, 8), "generated to nearest reference", fill=MADE, font=font)
    pen.text((MARGIN, 22), "reference to nearest other", fill=OWN, font=font)
    return picture
