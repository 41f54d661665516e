"""What ships and what training writes, loaded by our pieces and by stock open_clip alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch
from torch.nn import functional as F

from studio.engine.memory.components import Components
from studio.engine.memory.ledger import Ledger
from studio.errors import WeightsError
from studio.weights.loading import hosting
from studio_clip import convert, folders, model, train_pairs
from studio_diffusion.image import STARTER
from studio_diffusion.latent import LatentDiffusion

TEXTS = ["a red apple", "一个红苹果", "", "octopus " * 60]
PICTURES = np.random.default_rng(0).integers(0, 256, (3, 128, 128, 3), np.uint8)


def stock_answers(clip: open_clip.CLIP, loaded: model.ClipModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of `TEXTS` and `PICTURES` by open_clip's own calls."""
    tokens = loaded.tokenizer(TEXTS, padding="max_length", truncation=True, max_length=48, return_tensors="pt")
    x = torch.from_numpy(PICTURES).permute(0, 3, 1, 2).float() / 255
    x = F.interpolate(x, (loaded.size, loaded.size), mode="bilinear", antialias=True)
    with torch.inference_mode():
        return (clip.encode_text(tokens.input_ids, normalize=True), clip.encode_image((x - 0.5) / 0.5, normalize=True))


def test_stock_open_clip_builds_what_ships_from_its_configuration(tmp_path: Path) -> None:
    """`create_model` by name, after `add_model_config`; the embeddings are ours."""
    loaded = model.load()
    config = json.loads((folders.WEIGHTS / folders.CONFIG).read_text("utf-8"))["model_cfg"]
    (tmp_path / "studio-starter.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    made = open_clip.create_model("studio-starter").eval()
    made.load_state_dict(model.stock().state_dict())
    text, image = stock_answers(made, loaded)
    torch.testing.assert_close(loaded.encode_text(TEXTS), text, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loaded.encode_pixels(PICTURES), image, rtol=1e-4, atol=1e-5)


def test_what_ships_is_small_and_frozen() -> None:
    assert (folders.WEIGHTS / folders.TENSORS).stat().st_size <= 8 << 20
    loaded = model.load()
    for part in (loaded.visual, loaded.text_encoder, loaded.head):
        assert not part.training
        assert not any(p.requires_grad or p.is_meta for p in part.parameters())


@pytest.mark.parametrize("tower_name", convert.TOWERS)
def test_a_text_tower_of_its_own_is_kept_beside_the_rest(
    tower_name: str, tower: Any, tokens: Any, tmp_path: Path
) -> None:
    trained = train_pairs.build(tower, tower_name).eval()
    model.save(tmp_path, trained, tower.config, convert.TOWERS[tower_name])
    model.save_text(tmp_path, trained, tower.config, tokens)
    loaded = model.load(tmp_path)
    text, image = stock_answers(trained, loaded)
    torch.testing.assert_close(loaded.encode_text(TEXTS), text, rtol=0, atol=3e-3)  # the rest is kept in float16
    torch.testing.assert_close(loaded.encode_pixels(PICTURES), image, rtol=0, atol=3e-3)
    for name, value in model.stock(tmp_path).state_dict().items():
        torch.testing.assert_close(value, trained.state_dict()[name], rtol=1e-3, atol=1e-3)


def test_the_text_tower_is_one_with_the_image_models() -> None:
    """In an engine that has loaded the image model, CLIP adds what is its own."""
    ledger = Ledger(None)
    parts = Components("cpu", ledger, lambda path: str(path), None)
    with parts.collecting(), hosting(parts, None):
        latent = LatentDiffusion(STARTER, "cpu", torch.float32)
        loaded = model.load()
        made = parts._made.components
    assert loaded.text_encoder is latent.text_encoder
    assert len({id(part) for part in made}) == len(made) - 1
    assert loaded.encode_text(TEXTS).isfinite().all(), "attention's route serves both"


def test_damaged_weights_are_told(tower: Any, tokens: Any, tmp_path: Path) -> None:
    trained = train_pairs.build(tower, "vit")
    model.save(tmp_path, trained, tower.config, convert.TOWERS["vit"])
    model.save_text(tmp_path, trained, tower.config, tokens)
    state = safetensors.torch.load_file(tmp_path / folders.TENSORS)
    del state["visual.proj"]
    safetensors.torch.save_file(state, tmp_path / folders.TENSORS)
    with pytest.raises(WeightsError, match=r"lack `proj`"):
        model.load(tmp_path)
    (tmp_path / folders.TENSORS).write_bytes(b"no weights")
    with pytest.raises(WeightsError, match="cannot be read as safetensors"):
        model.load(tmp_path)
