"""The clips for the video benchmarks: chosen by a rule, generated once, and shown on contact sheets.

The labels follow a rule: the first emoji of animals and food by their frequency in WordNet's tagged texts, then
alphabetically. Seeds count labels times motions, so the clips of a smaller run are reused by a larger one.

Try it: `asked(records, 50, each=2)` names 100 clips
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

import studio

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `recipes`, which is not installed

from recipes.data.build import LABELLED
from recipes.video.motions import THROUGH, draw
from studio.files import write_atomically

MOTIONS = ("sliding left", "spinning clockwise", "bouncing", "growing", "shaking", "fading in")


class Request(NamedTuple):
    """What a generator is asked for, beside the options of all: a name that no other has, the seed, the inputs."""

    name: str
    seed: int
    inputs: dict[str, Any]


class Asked(NamedTuple):
    """A clip to make: the data set's row, its label, the motion, and the seed."""

    row: int
    label: str
    motion: str
    seed: int

    @property
    def prompt(self) -> str:
        """What the model is told."""
        return f"a {self.label} {self.motion}"

    @property
    def request(self) -> Request:
        """What makes it."""
        return Request(f"{self.seed:04d} {self.prompt}", self.seed, {"prompt": self.prompt})


def common(records: Sequence[dict[str, Any]], count: int) -> list[int]:
    """The rows of the commonest things among emoji of animals and food."""
    rows = [i for i, r in enumerate(records) if r["source"] == "emoji" and r["group"] in LABELLED]
    return sorted(rows, key=lambda i: (-records[i]["count"], records[i]["label"]))[:count]


def asked(records: Sequence[dict[str, Any]], labels: int, each: int = len(MOTIONS)) -> list[Asked]:
    """Clips of the commonest things, `each` motions a thing (1, 2, 3 or 6), evenly apart and in rotation."""
    count = len(MOTIONS)
    if each not in (1, 2, 3, count):
        raise SystemExit(f"--each is {each}, but must be 1, 2, 3 or {count}: motions are evenly apart")
    return [
        Asked(row, records[row]["label"], MOTIONS[place], index * count + place)
        for index, row in enumerate(common(records, labels))
        for place in sorted((index + turn * (count // each)) % count for turn in range(each))
    ]


def truth(pictures: np.ndarray, wanted: Sequence[Asked]) -> list[np.ndarray]:
    """The training clips themselves: uint8 (16, S, S, 3) each."""
    return [
        np.stack([draw(PIL.Image.fromarray(pictures[each.row]), pose) for pose in THROUGH[each.motion]])
        for each in wanted
    ]


def make(
    host: studio.Studio, generator: str, wanted: Sequence[Request], folder: Path, **options: Any
) -> list[np.ndarray]:
    """What `video` or `image` makes of the requests: uint8 (T, H, W, 3) each, a picture as (1, H, W, 3).

    Each is kept in `folder` as it is made, under its name, and apart from those of other weights and options; what is
    there is not made again.
    """
    kept = folder / f"{generator}-{_meant(host, generator, options)}"
    kept.mkdir(parents=True, exist_ok=True)
    paths = [kept / f"{each.name.replace('/', ' ')}.npz" for each in wanted]
    tickets = [
        (path, host.submit(generator, seed=each.seed, **each.inputs, **options))
        for path, each in zip(paths, wanted, strict=True)
        if not path.exists()
    ]
    for done, (path, ticket) in enumerate(tickets, 1):
        media: Any = ticket.result()
        frames = media.frames if generator == "video" else np.asarray(media.pil)[None]
        buffer = io.BytesIO()
        np.savez_compressed(buffer, frames=frames)
        write_atomically(path, buffer.getvalue())
        print(f"{done} of {len(tickets)}: {path.stem}", flush=True)
    return [np.load(path)["frames"] for path in paths]


def _meant(host: studio.Studio, name: str, options: dict[str, Any]) -> str:
    """A short name of the weights and options."""
    generator = host.generator(name)
    inputs = generator.Inputs.parse({"prompt": "a", **options})
    told = hashlib.sha256(json.dumps([inputs.as_recipe(), generator.version], sort_keys=True).encode())
    for path in generator.weights(studio.ModelRef()):
        told.update(hashlib.sha256(path.read_bytes()).digest())
    return told.hexdigest()[:12]


def sheet(rows: Sequence[tuple[str, np.ndarray]], side: int = 96) -> PIL.Image.Image:
    """A row for each name and its frames (T, H, W, 3), which are brought to a side of `side` pixels."""
    left, font = 150, PIL.ImageFont.load_default(13)
    made = PIL.Image.new("RGB", (left + side * max(len(frames) for _, frames in rows), side * len(rows)), "white")
    pen = PIL.ImageDraw.Draw(made)
    for y, (name, frames) in enumerate(rows):
        pen.multiline_text((6, (y + 0.5) * side), name.replace(" ", "\n", 2) if len(name) > 18 else name, "black", font,
                           anchor="lm")  # fmt: skip
        for x, frame in enumerate(frames):
            small = PIL.Image.fromarray(frame).resize((side, side), PIL.Image.Resampling.LANCZOS)
            made.paste(small, (left + x * side, y * side))
    return made
