"""Speed of the video model: a request, window attention, packing compared with padding. Works with any weights.

    python benchmarks/video.py request --threads 2      # 16 frames at 128x128, 20 guided steps; and 64 frames
    python benchmarks/video.py windows                  # a guided step by kind of attention and number of frames
    python benchmarks/video.py packing                  # training samples per second on the mixed set

`--model` is a folder that `studio train video` wrote; without it the net has the starter's shape and random weights.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from studio.devices import torch_setup

torch_setup.prepare()

import studio  # noqa: E402  (needs prepare)

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `recipes`, which is not installed

from recipes.video import draw  # noqa: E402
from recipes.video.motions import POSES  # noqa: E402
from studio.attention.current import DispatchSettings, use_dispatch  # noqa: E402
from studio_video import files, train  # noqa: E402
from studio_video.model import VideoConfig, VideoTransformer, pack  # noqa: E402
from studio_video.packing import AttentionPattern, VideoSample  # noqa: E402
from studio_video.product import Product  # noqa: E402

WORDS = 9  # tokens of a caption


def net() -> VideoTransformer:
    """The starter's shape with random weights; the zeros of a new net would cost as much."""
    torch.manual_seed(0)
    return VideoTransformer(VideoConfig()).eval()


def median(call: Callable[[], object], rounds: int) -> float:
    """Seconds of processor time, which other work on the machine hardly changes; a first round does not count."""
    taken = []
    for _ in range(rounds + 1):
        begin = time.process_time()
        call()
        taken.append(time.process_time() - begin)
    return sorted(taken[1:])[rounds // 2]


def request(given: argparse.Namespace) -> None:
    """A request from its prompt to its file."""
    with tempfile.TemporaryDirectory() as folder, studio.Studio(home=Path(folder) / "home") as host:
        model = given.model or str(Path(folder) / "model")
        if not given.model:
            files.save(Path(model), net())
        host.generate("video", prompt="a", model=model, steps=1, frames=2)  # loads it
        seconds = {}
        for frames, attention in ((16, "full"), (64, "window")):
            begin, worked = time.perf_counter(), time.process_time()
            made = host.generate("video", prompt="a dog bouncing", model=model, frames=frames, attention=attention)
            made.save(Path(folder) / f"{frames}.mp4")
            seconds[frames] = time.perf_counter() - begin
            print(f"{frames} frames, {attention}: {seconds[frames]:.1f} s, {seconds[frames] / frames:.2f} s a frame, "
                  f"{time.process_time() - worked:.1f} s of processor time")  # fmt: skip
    print(f"a frame of 64 takes {seconds[64] / 64 / (seconds[16] / 16):.2f} times one of 16")
    print(f"most memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


@torch.inference_mode()
def windows(given: argparse.Namespace) -> None:
    """One guided step of a clip."""
    model = net().bfloat16()
    for frames in given.frames:
        x = torch.randn(frames, 8, 16, 16)
        one = VideoSample(x, torch.linspace(0, 1, frames), torch.full((frames,), 0.5), torch.randn(WORDS, 192))
        packed = pack([one, one], model.config)
        taken = {}
        for kind in ("full", "window", "factorised"):
            taken[kind] = median(partial(model, packed, AttentionPattern(kind)), given.rounds)
        print(f"{frames} frames: " + ", ".join(
            f"{kind} {1000 * each:.0f} ms ({taken['full'] / each:.2f}x)" for kind, each in taken.items()
        ))  # fmt: skip


def packing(given: argparse.Namespace) -> None:
    """Training samples a second, packed as they are or all as long and as large as the largest."""
    bank = torch.randn(4, len(POSES), 8, 16, 16).half()
    record = {"label": "thing", "source": "emoji", "group": "food", "gloss": "", "count": 0, "tags": [], "synonyms": [],
              "zh_label": "", "zh_tags": [], "descriptions": []}  # fmt: skip
    samples = draw.draw(bank, [record] * 4, [1.0] * 4, 32, 0.5, random.Random(0))
    model, noise = net().train(), torch.Generator().manual_seed(0)
    clips, targets = train.noisy(samples, [torch.randn(WORDS, 192)] * len(samples), noise, torch.device("cpu"))
    most = max(len(clip.x) for clip in clips)
    padded = [
        VideoSample(torch.zeros(most, 8, 16, 16), torch.zeros(most), torch.ones(most), clip.text) for clip in clips
    ]
    wide = [torch.zeros(most, 8, 16, 16)] * len(clips)

    def step(some: list[VideoSample], aims: list[torch.Tensor]) -> None:
        model.zero_grad()
        train.loss_of(model, some, aims, AttentionPattern(backend="product")).backward()

    with use_dispatch(DispatchSettings([Product()])):
        ours = len(clips) / median(lambda: step(clips, targets), given.rounds)
        theirs = len(clips) / median(lambda: step(padded, wide), given.rounds)
    print(f"{len(clips)} samples of up to {most} frames: {ours:.1f} a second packed, {theirs:.1f} padded, "
          f"{ours / theirs:.2f} times")  # fmt: skip


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description="What the video model costs.")
    parser.add_argument("what", choices=("request", "windows", "packing"))
    parser.add_argument("--model", default="", help="a folder that `studio train video` wrote")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--frames", type=int, nargs="+", default=[16, 64])
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    {"request": request, "windows": windows, "packing": packing}[given.what](given)


if __name__ == "__main__":
    main()
