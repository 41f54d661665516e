"""Do videos show the prompted object with the prompted motion?

A clip is generated for each of 50 labels and six motions (`clips.py`). The middle frame is evaluated as in
`recognition.py`, and the motion is classified by the rules of `tracks.py`. `--each 2` uses two motions per label, in
rotation, a third of the work: 100 clips of 16 frames at 20 guided steps take about a quarter of an hour of
processor time. Intervals are over objects, because clips of one object succeed or fail together. A stopped run can be
resumed, and `--each 6` reuses the clips of `--each 2`.

    python benchmarks/motion.py --data DATA --cache CACHE --out docs/video --each 2
    python benchmarks/motion.py --data DATA --cache CACHE --truth --out OUT    # the training clips themselves
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from clips import MOTIONS, Asked, asked, make, sheet, truth
from recognition import ranked
from tracks import recognise, tracks

import studio

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `recipes`, which is not installed

from recipes.data import build
from studio.evaluation import bootstrap

SHOWN, COLUMNS = 10, 8  # clips and frames of a sheet


def main() -> None:
    """Parse, make, judge, and write the table, the numbers and the contact sheets."""
    parser = argparse.ArgumentParser(description="Judge what clips show and how it moves.")
    parser.add_argument("--data", type=Path, required=True, help="data set of `python -m recipes.data`")
    parser.add_argument("--cache", type=Path, required=True, help="where packages are fetched to")
    parser.add_argument("--out", type=Path, required=True, help="folder for table.md, result.json and contact sheets")
    parser.add_argument("--clips", type=Path, default=Path("training/clips"), help="folder that keeps what is made")
    parser.add_argument("--model", default="", help="a folder that `studio train video` wrote")
    parser.add_argument("--labels", type=int, default=50)
    parser.add_argument("--each", type=int, default=len(MOTIONS), help="motions a label: 1, 2, 3 or 6")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--attention", default="full")
    parser.add_argument("--truth", action="store_true", help="judge the training clips in place of made ones")
    given = parser.parse_args()
    pictures, records = build.load(given.data)
    wanted = asked(records, given.labels, given.each)
    way = {"steps": given.steps, "guidance": given.guidance, "attention": given.attention}
    if given.truth:
        made = truth(pictures, wanted)
    else:
        with studio.Studio() as host:
            made = make(host, "video", [each.request for each in wanted], given.clips, model=given.model, **way)
    found = [recognise(tracks(clip)) for clip in made]
    middle = np.stack([clip[len(clip) // 2] for clip in made])
    places = ranked(given.cache, pictures, records, middle, [each.label for each in wanted])
    given.out.mkdir(parents=True, exist_ok=True)
    result = {"prompts": [each.prompt for each in wanted], "seeds": [each.seed for each in wanted], "found": found,
              "ranks": places, "truth": given.truth, **way}  # fmt: skip
    (given.out / "result.json").write_text(json.dumps(result) + "\n", "utf-8")
    text = table(wanted, found, places)
    (given.out / "table.md").write_text(text, "utf-8")
    for motion in MOTIONS:
        mine = [(each.prompt, clip) for each, clip in zip(wanted, made, strict=True) if each.motion == motion][:SHOWN]
        path = given.out / f"{motion.replace(' ', '-')}.webp"
        sheet([(name, thinned(clip)) for name, clip in mine]).save(path, quality=80, method=6)
    print(text)


def thinned(clip: np.ndarray) -> np.ndarray:
    """The frames of a sheet, evenly apart, the first and the last among them."""
    return clip[np.linspace(0, len(clip) - 1, COLUMNS).round().astype(int)]


def table(wanted: Sequence[Asked], found: Sequence[str], places: Sequence[int]) -> str:
    """The result as Markdown, a row for each motion."""
    lines = ["| motion | recognised | taken for | label top-1 | top-5 |", "|---|---|---|---|---|"]
    right = np.array([each.motion == said for each, said in zip(wanted, found, strict=True)])
    first, near = (np.array(places) <= most for most in (1, 5))
    for motion in MOTIONS:
        mine = np.array([each.motion == motion for each in wanted])
        wrong = [said for each, said in zip(wanted, found, strict=True) if each.motion == motion != said]
        often = max(sorted(set(wrong)), key=wrong.count) if wrong else ""
        lines.append(f"| {motion} | {right[mine].sum()}/{mine.sum()} | {often} | {first[mine].mean():.0%} | "
                     f"{near[mine].mean():.0%} |")  # fmt: skip
    shares = [share(wanted, each) for each in (right, first, near)]
    lines.append(f"| all {len(wanted)} (95% interval) | {shares[0]} | | {shares[1]} | {shares[2]} |")
    return "\n".join(lines) + "\n"


def share(wanted: Sequence[Asked], hits: np.ndarray) -> str:
    """A share of the clips and its interval, things drawn anew with all their clips."""
    things = sorted({each.row for each in wanted})
    of = np.array([each.row for each in wanted])
    low, high = bootstrap.of_mean(np.array([hits[of == row].mean() for row in things]))
    return f"{hits.mean():.0%} ({100 * low:.0f} to {100 * high:.0f})"


if __name__ == "__main__":
    main()
