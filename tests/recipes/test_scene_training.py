"""recipes/scenes/train.py on a tiny net: a ring of scenes, batches of both kinds, and a run that goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor

from recipes.scenes import picture, things
from recipes.scenes.train import Pool, shares, single_latents, train

LABELS = [thing.label for thing in things.read()]


def encode(pictures: np.ndarray) -> Tensor:
    """A sixteenth of the picture's colours as latents: (N, 3, 8, 8)."""
    x = torch.from_numpy(pictures.copy()).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    return torch.nn.functional.avg_pool2d(x, 16)


@pytest.fixture(scope="module")
def make_pool() -> Callable[[str], Pool]:
    square = PIL.Image.new("RGBA", (128, 128), (200, 60, 60, 255))
    own = picture.Sprites(dict.fromkeys(LABELS, square))
    return lambda seed: Pool(encode, own, 12, seed)


def record(label: str, **more: Any) -> dict[str, Any]:
    empty = {"tags": [], "gloss": "", "synonyms": [], "zh_label": "", "zh_tags": [], "count": 0, "descriptions": []}
    return {"source": "emoji", "group": "food", "label": label, **empty, **more}


def unet() -> Any:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, in_channels=3, out_channels=3, cross_attention_dim=8, block_out_channels=(8, 8),
        layers_per_block=1, norm_num_groups=4, attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def test_the_pool_keeps_the_newest_scenes(make_pool: Callable[[str], Pool]) -> None:
    pool = make_pool("a")
    pool.add(12)
    first = list(pool.scenes)
    pool.add(5)
    assert len(pool.scenes) == 12
    assert pool.scenes[5:] == first[5:]
    latents, texts = pool.batch(40)
    assert latents.shape == (40, 3, 8, 8)
    assert len(set(texts)) > 10


def test_pools_of_other_seeds_have_other_scenes(make_pool: Callable[[str], Pool]) -> None:
    pools = [make_pool(seed) for seed in ("0-0", "0-0", "0-80")]
    for pool in pools:
        pool.add(6)
    assert pools[0].scenes == pools[1].scenes != pools[2].scenes


def test_things_often_asked_for_are_drawn_more() -> None:
    first, later, other = shares([record(LABELS[0]), record(LABELS[200]), record("moai")]).tolist()
    assert first > later > other > 0


def test_a_run_that_was_stopped_goes_on(make_pool: Callable[[str], Pool], tmp_path: Path) -> None:
    single = torch.zeros(2, 3, 8, 8)

    def texts(captions: list[str]) -> Tensor:
        return torch.zeros(len(captions), 4, 8)

    def run(steps: int) -> Any:
        return train(tmp_path / "run", unet(), make_pool, single, [record("pizza"), record("taco")], texts,
                     device=torch.device("cpu"), minutes=10, steps=steps, batch=4, peak=1e-3, single=0.5)  # fmt: skip

    before = run(2).state_dict()
    after = run(5).state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(value.isfinite().all() for value in after.values())


def test_single_latents_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from studio_diffusion import export

    pictures = np.full((2, 32, 32, 3), 200, np.uint8)
    monkeypatch.setattr(export, "encode", lambda vae, given: encode(given))
    first = single_latents(None, pictures, tmp_path / "kept" / "single.npy")
    monkeypatch.setattr(export, "encode", lambda vae, given: pytest.fail("made again"))
    assert torch.equal(first, single_latents(None, pictures, tmp_path / "kept" / "single.npy"))
