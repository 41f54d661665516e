"""Is a video of one frame as good a picture as the image starter's? The same labels, seeds, steps and judge.

For each label one picture is made by `image` and one by `video --frames 1`, from the same prompt ("a dog"), and judged
as `recognition.py` judges. The video model has learnt things at rest, three quarters as large as the pictures that they
are compared with; so the starter's pictures are judged as they are and at that size, and so are the training pictures,
which say what a perfect model would score. A run that was stopped goes on where it was.

    python benchmarks/stills.py --data DATA --cache CACHE --out docs/video
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import PIL.Image
from clips import Request, common, make, sheet
from recognition import interval, ranked

import studio

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `recipes`, which is not installed

from recipes.data import build
from recipes.video.motions import Pose, draw
from studio.evaluation import bootstrap

SHOWN = 8  # pictures across a sheet, and rows of each kind


def at_rest(pictures: np.ndarray) -> np.ndarray:
    """Pictures (N, S, S, 3) as large as a thing at rest is in a clip."""
    return np.stack([draw(PIL.Image.fromarray(each), Pose()) for each in pictures])


def table(places: dict[str, list[int]]) -> str:
    """The result as Markdown; the last column is the lead over the image starter in points, a label a pair."""
    lines = ["| pictures | label top-1 | top-5 (95% interval) | top-5 minus that of `image` |", "|---|---|---|---|"]
    base = np.array(places["image"]) <= 5
    for name, found in places.items():
        first, near = (np.array(found) <= most for most in (1, 5))
        low, high = interval(int(near.sum()), len(found))
        lead, (less, more) = near.mean() - base.mean(), bootstrap.of_mean(near * 1.0 - base)
        lines.append(f"| {name} | {first.mean():.0%} | {near.mean():.0%} ({low:.0f} to {high:.0f}) | "
                     f"{100 * lead:+.0f} ({100 * less:+.0f} to {100 * more:+.0f}) |")  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse, make, judge, and write the table, the numbers and a contact sheet."""
    parser = argparse.ArgumentParser(description="Compare videos of one frame with the pictures of the image starter.")
    parser.add_argument("--data", type=Path, required=True, help="data set of `python -m recipes.data`")
    parser.add_argument("--cache", type=Path, required=True, help="where packages are fetched to")
    parser.add_argument("--out", type=Path, required=True, help="folder for stills.md, stills.json and stills.webp")
    parser.add_argument("--clips", type=Path, default=Path("training/clips"), help="folder that keeps what is made")
    parser.add_argument("--model", default="", help="a folder that `studio train video` wrote")
    parser.add_argument("--labels", type=int, default=96, help="the commonest animals and foods")
    parser.add_argument("--steps", type=int, default=20, help="of both models")
    given = parser.parse_args()
    pictures, records = build.load(given.data)
    rows = common(records, given.labels)
    labels = [records[row]["label"] for row in rows]
    wanted = [Request(f"{seed:04d} {label}", seed, {"prompt": f"a {label}"}) for seed, label in enumerate(labels)]
    with studio.Studio() as host:
        image = np.concatenate(make(host, "image", wanted, given.clips, steps=given.steps))
        video = np.concatenate(make(host, "video", wanted, given.clips, steps=given.steps, model=given.model, frames=1))
    made = {"image": image, "`image`, as small as a thing in a clip": at_rest(image), "`video --frames 1`": video,
            "training pictures, as small": at_rest(pictures[rows])}  # fmt: skip
    flat = ranked(given.cache, pictures, records, np.concatenate(list(made.values())), labels * len(made))
    places = {name: flat[index * len(rows) :][: len(rows)] for index, name in enumerate(made)}
    given.out.mkdir(parents=True, exist_ok=True)
    result = {"labels": labels, "steps": given.steps, "ranks": places}
    (given.out / "stills.json").write_text(json.dumps(result) + "\n", "utf-8")
    (given.out / "stills.md").write_text(table(places), "utf-8")
    shown = [
        (kind, each[start : start + SHOWN])
        for start in range(0, 3 * SHOWN, SHOWN)
        for kind, each in (("image", image), ("video", video))
    ]
    sheet(shown).save(given.out / "stills.webp", quality=80, method=6)
    print(table(places))


if __name__ == "__main__":
    main()
