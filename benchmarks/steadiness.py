"""Is a clip steadier than pictures that are generated frame by frame? The true motion is undone for each frame.

A motion is a path of poses (`recipes.video.motions`), so the true pose of each frame is known. After undoing it, the
frames of a perfect clip are equal except for resampling. The error is the mean absolute difference of neighbouring
frames where both show the object; and, because faint objects differ little, the same relative to the object's ink, the
mean distance from white. Frames in which less than half of the object has faded in are skipped. Motion that differs
from the prompted one counts as an error too.

A clip of the video model is compared with these, for the same label, poses and number of steps:

- **frame by frame**: each frame is a picture of the image starter with another seed;
- **redrawn**: one picture of the starter in the poses, each frame redrawn by `image --image --strength 0.5` from the
  same seed: a common use of an image model on clips, and much harder to beat;
- **one picture**: the same picture in all poses, and **training clips**, the same with a picture of the data set:
  the error of resampling only, which is the lower limit.

    python benchmarks/steadiness.py --data DATA --out docs/video

A stopped run can be resumed, as with `motion.py`, whose clips are reused if the options are the same.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import PIL.Image
from clips import Asked, Request, asked, make, truth

import studio

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `recipes`, which is not installed

from recipes.data import build
from recipes.video.motions import REST, THROUGH, Pose, draw

STRENGTH = 0.5
SEEN = 0.5  # how much of a thing must have faded in
WORST = 2.0  # error by ink of a clip that shows nothing: no two pictures differ by more than the ink of both


def along(path: Sequence[Pose], frames: int) -> list[Pose]:
    """The poses at `frames` even times of a path, straight between its own."""
    at = np.linspace(0, len(path) - 1, frames)
    columns = np.array([(pose.dx, pose.dy, pose.angle, pose.scale, pose.alpha) for pose in path]).T
    between = np.array([np.interp(at, range(len(path)), column) for column in columns])
    return [Pose(*map(float, row)) for row in between.T]


def undone(frame: np.ndarray, pose: Pose) -> tuple[np.ndarray, np.ndarray]:
    """A frame, uint8 (S, S, 3), with its pose taken back to rest: float32 (S, S, 3), and (S, S) what of it was seen.

    `pose.alpha` is above 0.
    """
    side, turn = frame.shape[0], math.radians(pose.angle)
    cos, sin = (of(turn) * pose.scale / REST for of in (math.cos, math.sin))
    middle, unit = side / 2, side / 128
    from_x = middle + pose.dx * unit - cos * middle + sin * middle
    from_y = middle + pose.dy * unit - sin * middle - cos * middle
    where = (cos, -sin, from_x, sin, cos, from_y)  # Pillow asks for each made point where it comes from
    size, way = (side, side), PIL.Image.Transform.AFFINE
    back = PIL.Image.fromarray(frame).transform(size, way, where, PIL.Image.Resampling.BICUBIC)
    seen = PIL.Image.new("L", size, 255).transform(size, way, where, PIL.Image.Resampling.BILINEAR)
    shown = 255 - (255 - np.asarray(back, np.float32)) / pose.alpha
    return shown.clip(0, 255), np.asarray(seen) == 255


def error(frames: np.ndarray, motion: str) -> tuple[float, float]:
    """How far neighbouring frames (T, S, S, 3) of a motion differ at rest: in levels of 255, and by the thing's ink."""
    poses = along(THROUGH[motion], len(frames))
    rest = [undone(frame, pose) for frame, pose in zip(frames, poses, strict=True) if pose.alpha >= SEEN]
    apart, ink = [], []
    for (before, seen_before), (after, seen_after) in pairwise(rest):
        both = seen_before & seen_after
        apart.append(np.abs(after - before)[both].mean())
        ink.append(255 - (after[both].mean() + before[both].mean()) / 2)
    levels, dark = float(np.mean(apart)), float(np.mean(ink))
    return levels, levels / dark if dark > 1 else WORST


def by_pictures(given: argparse.Namespace, wanted: Sequence[Asked], frames: int) -> dict[str, list[np.ndarray]]:
    """The clips of the image starter: frame by frame, redrawn, and of one picture."""
    things = list(dict.fromkeys((each.row, each.label) for each in wanted))
    anew = [
        Request(f"{label} {at:02d}", index * frames + at, {"prompt": f"a {label}"})
        for index, (_, label) in enumerate(things)
        for at in range(frames)
    ]
    with studio.Studio() as host:
        made = [each[0] for each in make(host, "image", anew, given.clips, steps=given.steps)]
        drawn = {row: made[index * frames :][:frames] for index, (row, _) in enumerate(things)}
        poses = {each: along(THROUGH[each.motion], frames) for each in wanted}
        clips = {
            "frame by frame": [_posed(drawn[each.row], poses[each]) for each in wanted],
            "one picture": [_posed(drawn[each.row][:1] * frames, poses[each]) for each in wanted],
        }
        over = [
            Request(f"{each.request.name} {at:02d}", each.seed,
                    {"prompt": f"a {each.label}", "image": studio.Image.from_array(frame), "strength": STRENGTH})
            for each, clip in zip(wanted, clips["one picture"], strict=True)
            for at, frame in enumerate(clip)
        ]  # fmt: skip
        flat = [each[0] for each in make(host, "image", over, given.clips / "redrawn", steps=given.steps)]
    clips["redrawn"] = [np.stack(flat[index * frames :][:frames]) for index in range(len(wanted))]
    return clips


def _posed(pictures: Sequence[np.ndarray], poses: Sequence[Pose]) -> np.ndarray:
    return np.stack([draw(PIL.Image.fromarray(each), pose) for each, pose in zip(pictures, poses, strict=True)])


def table(errors: dict[str, list[tuple[float, float]]]) -> str:
    """The result as Markdown; shares are of the clips `frame by frame`, with 95% intervals over the clips."""
    lines = ["| clips | levels of 255 | relative to ink | of frame by frame (95% interval) |", "|---|---|---|---|"]
    base = np.array(errors["frame by frame"])[:, 1]
    draws = np.random.default_rng(0).integers(0, len(base), (2000, len(base)))
    for name, found in errors.items():
        levels, ink = np.array(found).T
        low, high = np.percentile(ink[draws].mean(1) / base[draws].mean(1), [2.5, 97.5])
        lines.append(f"| {name} | {levels.mean():.2f} | {ink.mean():.3f} | {ink.mean() / base.mean():.2f} "
                     f"({low:.2f} to {high:.2f}) |")  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse, make, measure, and write the table and the numbers."""
    parser = argparse.ArgumentParser(description="Compare a clip's frames at rest with pictures drawn frame by frame.")
    parser.add_argument("--data", type=Path, required=True, help="data set of `python -m recipes.data`")
    parser.add_argument("--out", type=Path, required=True, help="folder for steadiness.md and steadiness.json")
    parser.add_argument("--clips", type=Path, default=Path("training/clips"), help="folder that keeps what is made")
    parser.add_argument("--model", default="", help="a folder that `studio train video` wrote")
    parser.add_argument("--labels", type=int, default=24)
    parser.add_argument("--each", type=int, default=1, help="motions a label: 1, 2, 3 or 6")
    parser.add_argument("--steps", type=int, default=20, help="of both models")
    given = parser.parse_args()
    pictures, records = build.load(given.data)
    wanted = asked(records, given.labels, given.each)
    way = {"steps": given.steps, "guidance": 4.0, "attention": "full"}
    with studio.Studio() as host:
        made = make(host, "video", [each.request for each in wanted], given.clips, model=given.model, **way)
    clips = {"video model": made, **by_pictures(given, wanted, len(made[0])), "training clips": truth(pictures, wanted)}
    errors = {
        name: [error(clip, each.motion) for clip, each in zip(some, wanted, strict=True)]
        for name, some in clips.items()
    }
    given.out.mkdir(parents=True, exist_ok=True)
    result = {"prompts": [each.prompt for each in wanted], "steps": given.steps, "errors": errors}
    (given.out / "steadiness.json").write_text(json.dumps(result) + "\n", "utf-8")
    (given.out / "steadiness.md").write_text(table(errors), "utf-8")
    print(table(errors))


if __name__ == "__main__":
    main()
