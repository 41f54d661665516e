"""What the video starter's training draws, and its latent cache."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recipes.video import draw, latent_cache
from recipes.video.motions import POSES
from studio_diffusion.image import STARTER
from studio_video import train

RECORDS: list[dict[str, Any]] = [
    {"label": label, "source": "emoji", "group": "food", "gloss": "", "count": count, "tags": [], "synonyms": [],
     "zh_label": "", "zh_tags": [], "descriptions": []}
    for label, count in (("apple", 7), ("pear", 0))
]  # fmt: skip


def latents() -> torch.Tensor:
    return torch.randn(2, len(POSES), 2, 8, 8, generator=torch.Generator().manual_seed(1)).half()


@pytest.mark.parametrize("moving", [0.0, 0.5, 1.0])
def test_a_step_has_about_as_many_frames_as_asked(moving: float) -> None:
    made = draw.draw(latents(), RECORDS, [1.0, 1.0], 40, moving, random.Random(3))
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
    made = [each for _ in range(60) for each in draw.draw(latents(), RECORDS, [1.0, 1.0], 40, 1.0, rng)]
    spun, slid = (sum(word in each.caption for each in made) for word in ("spinning clockwise", "sliding left"))
    assert 2 < spun / slid < 4


def test_some_clips_are_a_part_of_a_movement(monkeypatch: pytest.MonkeyPatch) -> None:
    def short() -> float:
        rng = random.Random(6)
        made = [each for _ in range(60) for each in draw.draw(latents(), RECORDS, [1.0, 1.0], 40, 1.0, rng)]
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
    made = [each for _ in range(40) for each in draw.draw(latents(), RECORDS, [1.0, 1.0], 40, 1.0, rng, {1: film})]
    shown = [each for each in made if (each.x0 == each.x0.round()).all()]
    assert 0.5 * draw.FILMED < len(shown) / sum("apple" not in each.caption for each in made) < 1.5 * draw.FILMED
    for each in shown:
        number = each.x0[:, 0, 0, 0]
        torch.testing.assert_close((each.times - each.times[0]) * 15, number - number[0])
        assert each.caption in ("", "a pear moving", "pear moving", "the pear moving")


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
