"""Do window and factorised attention give the same clips as full attention? The same clips, evaluated by all metrics.

Each clip is generated from the same noise with every attention pattern and the same weights. Motion and label of the
middle frame are evaluated as in `motion.py`, steadiness as in `steadiness.py`. The mean absolute difference to the clip
with full attention, in levels of 255, is compared with that of two clips with different seeds.

    python benchmarks/views.py --data DATA --cache CACHE --out docs/video

A clip of 64 frames at 20 guided steps takes about 90 s of processor time with full attention, 40 s with windows. A
stopped run can be resumed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from clips import Asked, Request, asked, make, sheet
from motion import thinned
from recognition import ranked
from steadiness import error
from tracks import recognise, tracks

import studio

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `recipes`, which is not installed

from recipes.data import build

KINDS = ("full", "window", "factorised")
OTHER = 10_000  # added to a seed


def judged(wanted: Sequence[Asked], clips: Sequence[np.ndarray], places: Sequence[int]) -> dict[str, Any]:
    """The measures of the clips of one kind."""
    found = [recognise(tracks(clip)) for clip in clips]
    steady = [error(clip, each.motion)[1] for clip, each in zip(clips, wanted, strict=True)]
    return {"found": found, "right": sum(a.motion == b for a, b in zip(wanted, found, strict=True)),
            "ranks": list(places), "error": float(np.mean(steady))}  # fmt: skip


def apart(some: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> float:
    """Mean absolute difference in levels of 255."""
    return float(np.mean([np.abs(a.astype(int) - b).mean() for a, b in zip(some, others, strict=True)]))


def table(results: dict[str, dict[str, Any]], count: int) -> str:
    """The result as Markdown."""
    lines = ["| attention | motion | label top-1 | top-5 | error, relative to ink | difference from full |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for name, each in results.items():
        first, near = (sum(rank <= most for rank in each["ranks"]) for most in (1, 5))
        lines.append(f"| {name} | {each['right']}/{count} | {first}/{count} | {near}/{count} | {each['error']:.3f} | "
                     f"{each['apart']:.1f} |")  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse, make, judge, and write the table, the numbers and a contact sheet."""
    parser = argparse.ArgumentParser(description="Judge what each kind of attention draws from the same noise.")
    parser.add_argument("--data", type=Path, required=True, help="data set of `python -m recipes.data`")
    parser.add_argument("--cache", type=Path, required=True, help="where packages are fetched to")
    parser.add_argument("--out", type=Path, required=True, help="folder for views.md, views.json and views.webp")
    parser.add_argument("--clips", type=Path, default=Path("training/clips"), help="folder that keeps what is made")
    parser.add_argument("--model", default="", help="a folder that `studio train video` wrote")
    parser.add_argument("--labels", type=int, default=12)
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--kinds", nargs="+", choices=KINDS[1:], default=list(KINDS[1:]), help="beside full")
    given = parser.parse_args()
    pictures, records = build.load(given.data)
    wanted = asked(records, given.labels, 1)
    unlike = [Request(each.request.name, each.seed + OTHER, {"prompt": each.prompt}) for each in wanted]
    way = {"steps": given.steps, "frames": given.frames, "model": given.model}
    with studio.Studio() as host:
        made = {
            kind: make(host, "video", [each.request for each in wanted], given.clips, attention=kind, **way)
            for kind in ("full", *given.kinds)
        }
        made["window, other seeds"] = make(host, "video", unlike, given.clips / "other", attention="window", **way)
    middle = np.stack([clip[len(clip) // 2] for clips in made.values() for clip in clips])
    places = ranked(given.cache, pictures, records, middle, [each.label for each in wanted] * len(made))
    count = len(wanted)
    results = {
        kind: judged(wanted, clips, places[index * count :][:count]) | {"apart": apart(clips, made["full"])}
        for index, (kind, clips) in enumerate(made.items())
    }
    given.out.mkdir(parents=True, exist_ok=True)
    told = {"prompts": [each.prompt for each in wanted], "steps": given.steps, "frames": given.frames, "kinds": results}
    (given.out / "views.json").write_text(json.dumps(told) + "\n", "utf-8")
    (given.out / "views.md").write_text(table(results, count), "utf-8")
    rows = [
        (f"{wanted[index].prompt}, {kind}", thinned(made[kind][index]))
        for index in range(min(4, count)) for kind in ("full", *given.kinds)
    ]  # fmt: skip
    sheet(rows).save(given.out / "views.webp", quality=80, method=6)
    print(table(results, count))


if __name__ == "__main__":
    main()
