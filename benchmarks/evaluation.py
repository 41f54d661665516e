"""DCGAN, pixel and latent diffusion side by side: quality, diversity and speed on the same pictures and encoder.

The reference pictures are the emoji of animals and foods that the DCGAN and the DDPM were trained on (and the latent
model among others), and their labels are the prompts. Every row has the same number of pictures, resized to the same
size. An interrupted run can be resumed; timings are repeated.

    python benchmarks/evaluation.py --data training/data --out evaluation

With 64 pictures per row, the DDPM at 1000 steps takes most of the time: `--rows` selects rows.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import PIL.Image

import studio

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `recipes`, which is not installed

from recipes.data import build
from studio.evaluation import Evaluation, Figure, evaluate, report, speed
from studio.media.pictures import square_on_white

SIZE = 32  # pixels that all are brought to: the DDPM's own
KEPT = 64  # pixels of the reference's files

ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "DCGAN": ("dcgan", {}),
    "DDPM, 1000 steps": ("ddpm", {"steps": 1000, "sampler": "ddpm"}),
    "DDPM, 50 steps": ("ddpm", {"steps": 50}),
    "DDPM, 20 steps": ("ddpm", {"steps": 20}),
    "latent, 20 steps": ("image", {"steps": 20}),
    "latent, 4 steps": ("image", {"fast": True}),
}
TIMED = {"DDPM, 1000 steps": 2}  # pictures timed together, where it is not 8


def write_reference(data: Path, folder: Path) -> Path:
    """The data set's emoji as files, each in the folder of its label."""
    pictures, records = build.load(data)
    chosen = [row for row, record in enumerate(records) if build.is_labelled(record)]
    for number, row in enumerate(chosen):
        path = folder / records[row]["label"].replace("/", " ") / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(square_on_white(PIL.Image.fromarray(pictures[row]), KEPT)).save(path)
    return folder


def run(host: studio.Studio, row: str, reference: Path, count: int, models: dict[str, str]) -> Evaluation:
    """Evaluate one row."""
    generator, inputs = ROWS[row]
    if generator in models:
        inputs = {**inputs, "model": models[generator]}
    found = evaluate(host, generator, reference, n=count, inputs=inputs, size=SIZE)
    timed = TIMED.get(row, 8)
    asked = [{**found.setup["inputs"], found.setup["by"]: label} for label in found.wanted[: timed + 1]]
    return dataclasses.replace(found, speed=speed.measure(generator, asked, {"home": str(host.home)}, 0))


def table(made: dict[str, list[Figure]]) -> str:
    """A line for each figure, a column for each row."""
    names: list[str] = []
    for figures in made.values():
        names += [each.name for each in figures if each.name not in names and not each.name.startswith("each of")]
    names.insert(names.index("peak memory"), "each, some together")
    lines = [f"| | {' | '.join(made)} |", f"|---|{'---|' * len(made)}"]
    for name in names:
        cells = []
        for figures in made.values():
            wanted = "each of" if name == "each, some together" else name
            cells.append(next(report.shown(each) for each in figures if each.name.startswith(wanted)))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Evaluate the rows, write a report of each and the table of all."""
    parser = argparse.ArgumentParser(description="Compare generators on the same pictures and encoder.")
    parser.add_argument("--data", type=Path, required=True, help="data set of `python -m recipes.data`")
    parser.add_argument("--out", type=Path, required=True, help="folder for the reference, the reports and table.md")
    parser.add_argument("--pictures", type=int, default=64, help="of each row, 50 to 1000")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--model", action="append", default=[], metavar="GENERATOR=MODEL", help="in place of a starter")
    given = parser.parse_args()
    models = dict(each.split("=", 1) for each in given.model)
    reference = write_reference(given.data, given.out / "reference")
    made = {}
    with studio.Studio() as host:
        for row in given.rows:
            found = run(host, row, reference, given.pictures, models)
            report.write(found, given.out / row.replace(",", "").replace(" ", "-"))
            made[row] = [*found.figures, *report.speed_figures(found)]
            print(
                row, json.dumps({each.name: report.shown(each) for each in made[row]}, ensure_ascii=False), flush=True
            )
    text = table(made)
    (given.out / "table.md").write_text(text, "utf-8")
    print(text)


if __name__ == "__main__":
    main()
