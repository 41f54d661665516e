"""Training on a few latents: what is drawn, what is learnt, and a run that was stopped ends as one that was not."""

from __future__ import annotations

import random
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from studio_video import files, train
from studio_video.model import VideoConfig, VideoTransformer
from studio_video.packing import AttentionPattern

CPU = torch.device("cpu")
SHAPE = VideoConfig(width=32, depth=1, head_dim=16, mlp=64, channels=2, text=6)
CAPTIONS = ["apple bouncing", "pear"]


def latents() -> list[torch.Tensor]:
    """A clip of twenty frames, and a still."""
    made = torch.randn(21, 2, 8, 8, generator=torch.Generator().manual_seed(1)).half()
    return [made[:20], made[20:]]


def encode(texts: Sequence[str]) -> list[torch.Tensor]:
    made = []
    for text in texts:
        rng = torch.Generator().manual_seed(len(text))
        made.append(torch.randn(1 + len(text.split()), 6, generator=rng))
    return made


def fit(
    folder: Path, steps: int, encoder: train.Encode = encode, shown: Sequence[torch.Tensor] | None = None, **more: Any
) -> VideoTransformer:
    clips = latents() if shown is None else shown

    def draw(rng: random.Random, frames: int, done: float) -> list[train.TrainingSample]:
        return train.draw_clips(clips, CAPTIONS, rng, frames)

    return train.train(draw, "data", encoder, folder, device=CPU, steps=steps, minutes=60, frames=8, config=SHAPE,
                       log_every=1, **more)  # fmt: skip


@given(seed=st.integers(0, 999), lengths=st.lists(st.integers(1, 40), min_size=1, max_size=3))
def test_a_batch_has_about_as_many_frames_as_asked(seed: int, lengths: list[int]) -> None:
    clips = [torch.arange(float(count))[:, None, None, None].expand(count, 2, 4, 4) for count in lengths]
    captions = [f"clip {index}" for index in range(len(clips))]
    made = train.draw_clips(clips, captions, random.Random(seed), 40)
    assert 40 <= sum(len(each.x0) for each in made) < 40 + max(train.COUNTS)
    assert [len(each.x0) for each in made] == sorted(len(each.x0) for each in made)
    for each in made:
        numbers = each.x0[:, 0, 0, 0]
        assert (numbers.diff() > 0).all()
        assert numbers[-1] - numbers[0] < train.WINDOW
        assert each.times.tolist() == sorted(each.times.tolist())
        assert 0 <= each.times[0] <= each.times[-1] <= 1
        assert not each.given.all()
        assert each.caption in ("", *captions)


def test_what_is_given_has_no_noise_and_no_loss() -> None:
    samples = [each for seed in range(30) for each in train.draw_clips(latents(), CAPTIONS, random.Random(seed), 8)]
    clips, targets = train.noisy(samples, encode([each.caption for each in samples]), torch.Generator(), CPU)
    assert any(each.given.any() for each in samples)
    for sample, clip, target in zip(samples, clips, targets, strict=True):
        assert torch.equal(clip.x[sample.given], sample.x0[sample.given])
        assert not clip.levels[sample.given].any()
        level = clip.levels[~sample.given][0]
        noise = target + sample.x0
        torch.testing.assert_close(clip.x[~sample.given], torch.lerp(sample.x0, noise, level)[~sample.given])


class Stopping:
    """Encodes texts, and asks the run to stop in its third step, as Ctrl-C does."""

    asked = 0

    def __call__(self, texts: Sequence[str]) -> list[torch.Tensor]:
        self.asked += 1
        if self.asked == 3:
            signal.raise_signal(signal.SIGINT)
        return encode(texts)


def test_a_run_that_was_stopped_ends_at_the_same_weights(tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", 5).state_dict()
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "parts", 5, Stopping())
    parts = fit(tmp_path / "parts", 5).state_dict()
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def test_what_is_shown_is_learnt(tmp_path: Path) -> None:
    shown = [torch.full((count, 2, 8, 8), value).half() for count, value in ((16, 1.0), (1, -1.0))]
    samples = [each for seed in range(4) for each in train.draw_clips(shown, CAPTIONS, random.Random(seed), 8)]
    texts = encode([each.caption for each in samples])

    def loss(model: VideoTransformer) -> float:
        clips, targets = train.noisy(samples, texts, torch.Generator().manual_seed(7), CPU)
        with torch.no_grad():
            return float(train.loss_of(model, clips, targets, AttentionPattern()))

    torch.manual_seed(0)
    assert loss(fit(tmp_path, 40, shown=shown, peak=2e-2)) < 0.9 * loss(VideoTransformer(SHAPE))


def test_the_folder_holds_small_files_and_their_sums(tmp_path: Path) -> None:
    files.save(tmp_path / "model", VideoTransformer(VideoConfig()))
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "model").iterdir()}
    assert {"config.json", "SHA256SUMS"} < set(sizes)
    assert max(sizes.values()) < 16 << 20
    assert sum(sizes.values()) < 20 << 20
