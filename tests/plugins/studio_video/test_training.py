"""Training on a few latents: what is drawn, what is learnt, and a run that was stopped ends as one that was not."""

from __future__ import annotations

import random
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from studio_diffusion.image import STARTER
from studio_video import files, latent_cache, train
from studio_video.model import VideoConfig, VideoTransformer
from studio_video.motions import POSES
from studio_video.packing import AttentionPattern

CPU = torch.device("cpu")
SHAPE = VideoConfig(width=32, depth=1, head_dim=16, mlp=64, channels=2, text=6)
RECORDS: list[dict[str, Any]] = [
    {"label": label, "source": "emoji", "group": "food", "gloss": "", "count": count, "tags": [], "synonyms": [],
     "zh_label": "", "zh_tags": [], "descriptions": []}
    for label, count in (("apple", 7), ("pear", 0))
]  # fmt: skip


def latents() -> torch.Tensor:
    return torch.randn(2, len(POSES), 2, 8, 8, generator=torch.Generator().manual_seed(1)).half()


def encode(texts: Sequence[str]) -> list[torch.Tensor]:
    made = []
    for text in texts:
        rng = torch.Generator().manual_seed(len(text))
        made.append(torch.randn(1 + len(text.split()), 6, generator=rng))
    return made


def fit(
    folder: Path, steps: int, encoder: train.Encode = encode, shown: torch.Tensor | None = None, **more: Any
) -> VideoTransformer:
    data = latents() if shown is None else shown
    return train.train(data, RECORDS, encoder, folder, device=CPU, steps=steps, minutes=60, frames=8, config=SHAPE,
                       log_every=1, **more)  # fmt: skip


@pytest.mark.parametrize("moving", [0.0, 0.5, 1.0])
def test_a_step_has_about_as_many_frames_as_asked(moving: float) -> None:
    made = train.draw(latents(), RECORDS, [1.0, 1.0], 40, moving, random.Random(3))
    whole = 2 * 8 * 8
    total = sum(each.x0.numel() for each in made) / whole
    clips = sum(len(each.x0) for each in made if len(each.x0) > 1)
    assert 40 <= total <= 48
    assert abs(clips - 40 * moving) <= 8
    assert [each.x0.numel() for each in made] == sorted(each.x0.numel() for each in made)
    for each in made:
        assert len(each.x0) == len(each.times) == len(each.given)
        assert each.times.tolist() == sorted(each.times.tolist())
        assert not each.given.all()
        assert each.caption == "" or any(record["label"] in each.caption for record in RECORDS)


def test_what_takes_longest_to_learn_is_drawn_most_often() -> None:
    rng = random.Random(4)
    made = [each for _ in range(60) for each in train.draw(latents(), RECORDS, [1.0, 1.0], 40, 1.0, rng)]
    spun, slid = (sum(word in each.caption for each in made) for word in ("spinning clockwise", "sliding left"))
    assert 2 < spun / slid < 4


def test_some_clips_are_a_part_of_a_movement(monkeypatch: pytest.MonkeyPatch) -> None:
    def short() -> float:
        rng = random.Random(6)
        made = [each for _ in range(60) for each in train.draw(latents(), RECORDS, [1.0, 1.0], 40, 1.0, rng)]
        assert all(each.times[0] == 0 for each in made if each.given.any())
        return float(np.mean([(each.times[-1] - each.times[0]).item() < 0.5 for each in made if not each.given.any()]))

    some = short()
    monkeypatch.setattr(train, "NEAR", 0.0)
    none = short()
    assert none < 0.15
    assert none + 0.1 < some < none + 0.35


def test_of_things_that_have_an_animation_some_clips_are_of_it() -> None:
    film = torch.arange(20.0)[:, None, None, None].expand(20, 2, 8, 8)
    rng = random.Random(5)
    made = [each for _ in range(40) for each in train.draw(latents(), RECORDS, [1.0, 1.0], 40, 1.0, rng, {1: film})]
    shown = [each for each in made if (each.x0 == each.x0.round()).all()]
    assert 0.5 * train.FILMED < len(shown) / sum("apple" not in each.caption for each in made) < 1.5 * train.FILMED
    for each in shown:
        number = each.x0[:, 0, 0, 0]
        torch.testing.assert_close((each.times - each.times[0]) * 15, number - number[0])
        assert each.caption in ("", "a pear moving", "pear moving", "the pear moving")


def test_what_is_given_has_no_noise_and_no_loss() -> None:
    samples = [
        each for seed in range(30) for each in train.draw(latents(), RECORDS, [1, 1], 8, 1.0, random.Random(seed))
    ]
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
    shown = torch.tensor([1.0, -1.0])[:, None, None, None, None].expand(2, len(POSES), 2, 8, 8).half()
    samples = [each for seed in range(4) for each in train.draw(shown, RECORDS, [1, 1], 8, 0.5, random.Random(seed))]
    texts = encode([each.caption for each in samples])

    def loss(model: VideoTransformer) -> float:
        clips, targets = train.noisy(samples, texts, torch.Generator().manual_seed(7), CPU)
        with torch.no_grad():
            return float(train.loss_of(model, clips, targets, AttentionPattern()))

    torch.manual_seed(0)
    assert loss(fit(tmp_path, 40, shown=shown, peak=2e-2)) < 0.9 * loss(VideoTransformer(SHAPE))


def test_the_bank_holds_every_pose_and_is_made_once(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(STARTER / "vae", low_cpu_mem_usage=False, local_files_only=True)
    pictures = np.full((1, 32, 32, 3), 255, np.uint8)
    pictures[0, 8:24, 8:24] = (200, 40, 30)
    path = tmp_path / "bank.safetensors"
    made = latent_cache.make(vae, pictures, ["a"], path)
    assert made.shape == (1, len(POSES), 8, 4, 4)
    assert made.isfinite().all()
    written = path.stat().st_mtime_ns
    assert torch.equal(latent_cache.make(vae, pictures, ["a"], path), made)
    assert path.stat().st_mtime_ns == written
    latent_cache.make(vae, pictures, ["b"], path)
    assert path.stat().st_mtime_ns > written


def test_animations_are_kept_at_rest_and_made_once(tmp_path: Path) -> None:
    import PIL.Image
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(STARTER / "vae", low_cpu_mem_usage=False, local_files_only=True)
    frames = [PIL.Image.new("RGB", (64, 64), (250 - i, i * 5, 0)) for i in range(40)]
    frames[0].save(tmp_path / "long.webp", save_all=True, append_images=frames[1:], duration=42)
    frames[0].save(tmp_path / "short.webp", save_all=True, append_images=frames[1:9], duration=42)
    frames[0].save(tmp_path / "still.webp")
    animations = {name: tmp_path / f"{name}.webp" for name in ("long", "short", "still")}
    made = latent_cache.films(vae, animations, 32, tmp_path / "films.safetensors")
    assert {name: each.shape for name, each in made.items()} == {"long": (20, 8, 4, 4)}
    written = (tmp_path / "films.safetensors").stat().st_mtime_ns
    again = latent_cache.films(vae, animations, 32, tmp_path / "films.safetensors")
    assert torch.equal(again["long"], made["long"])
    assert (tmp_path / "films.safetensors").stat().st_mtime_ns == written


def test_the_folder_holds_small_files_and_their_sums(tmp_path: Path) -> None:
    files.save(tmp_path / "model", VideoTransformer(VideoConfig()))
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "model").iterdir()}
    assert {"config.json", "SHA256SUMS"} < set(sizes)
    assert max(sizes.values()) < 16 << 20
    assert sum(sizes.values()) < 20 << 20
