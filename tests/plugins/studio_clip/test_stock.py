"""CLIPs in the layout of open_clip: the vectors that open_clip gives; one clear error for what is no such folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import PIL.Image
import pytest
import safetensors.torch
import torch

import studio
from studio.errors import UnknownName, WeightsError
from studio_clip import folders
from studio_clip.embed import EmbedGenerator

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
SHAPES: dict[str, dict[str, Any]] = {
    "vit": {"embed_dim": 12, "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}},
    "resnet": {"embed_dim": 12, "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}},
    "custom text": {
        "embed_dim": 12, "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "custom_text": True,
    },
}  # fmt: skip


def write(folder: Path, shape: dict[str, Any]) -> Path:
    folder.mkdir()
    config = {**shape, "text_cfg": TEXT}
    kept = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.2], "interpolation": "bicubic", "resize_mode": "shortest"}
    (folder / folders.CONFIG).write_text(json.dumps({"model_cfg": config, "preprocess_cfg": kept}))
    arguments = {name: value for name, value in config.items() if name != "custom_text"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = (open_clip.CustomTextCLIP if "custom_text" in config else open_clip.CLIP)(**arguments)
    state = {name: value.contiguous() for name, value in net.state_dict().items()}
    safetensors.torch.save_file(state, folder / "open_clip_model.safetensors")
    return folder


@pytest.mark.parametrize("kind", SHAPES)
def test_any_config_gives_what_open_clip_gives(kind: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "clip", SHAPES[kind])
    net, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    net.eval()
    rng = np.random.default_rng(0)
    picture = PIL.Image.fromarray(rng.integers(0, 256, (40, 70, 3), np.uint8))
    with torch.inference_mode():
        image = net.encode_image(transform(picture)[None], normalize=True)[0].numpy()
        text = net.encode_text(open_clip.get_tokenizer(f"local-dir:{folder}")(["a cat"]), normalize=True)[0].numpy()
    with studio.Studio(home=tmp_path / "home", device="cpu") as host:
        model = str(folder)
        made = [host.generate("embed", text="a cat", model=model)]
        made += [host.generate("embed", image=studio.Image(picture), model=model)]
        made += [host.generate("embed-pictures", images=[studio.Image(picture)], model=model)]
        scores = host.generate("clip-rank", text="a cat", images=[studio.Image(picture)], model=model)
    vectors = [each.vector for each in made if isinstance(each, studio.Embedding)]
    for found, wanted in zip(vectors, (text, image, image), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert isinstance(scores, studio.Embedding)
    np.testing.assert_allclose(scores.vector, [image @ text], atol=1e-5)
    assert made[0].recipe is not None
    assert folders.CONFIG in made[0].recipe.spec.model.sha256


def test_a_pulled_model(tmp_path: Path) -> None:
    folder = write(tmp_path / "clip", SHAPES["vit"])
    home = tmp_path / "home"
    studio.models.Models(home).pull(f"file:{folder}")
    with studio.Studio(home=home, device="cpu") as host:
        made = host.generate("embed", text="a cat", model=f"file:{folder}")
    assert isinstance(made, studio.Embedding)
    assert made.vector.shape == (12,)


def test_what_is_no_clip_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "clip", SHAPES["vit"])
    tensors = folder / "open_clip_model.safetensors"
    with pytest.raises(WeightsError, match=r"not a CLIP model: it has no `open_clip_config\.json`"):
        EmbedGenerator(tmp_path).weights(studio.ModelRef())
    tensors.rename(folder / "one.safetensors")
    (folder / "two.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError, match="has 2 weight files"):
        EmbedGenerator(folder).weights(studio.ModelRef())
    for each in ("one", "two"):
        (folder / f"{each}.safetensors").unlink()
    (folder / "open_clip_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(WeightsError, match="a pickle, which could run code"):
        EmbedGenerator(folder).weights(studio.ModelRef())
    with pytest.raises(UnknownName, match="nowhere"), studio.Studio(home=tmp_path / "home", device="cpu") as host:
        host.generate("embed", text="a cat", model=str(tmp_path / "nowhere"))


def test_a_config_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "clip", SHAPES["vit"])
    path = folder / folders.CONFIG
    good = json.loads(path.read_text())
    for vision, reason in (({"width": 128}, "shape"), ({"wings": 2}, "open_clip cannot build")):
        bad = {**good["model_cfg"], "vision_cfg": {**good["model_cfg"]["vision_cfg"], **vision}}
        path.write_text(json.dumps({**good, "model_cfg": bad}))
        with pytest.raises(WeightsError, match=reason):
            EmbedGenerator(folder).load(studio.ModelRef(), "cpu", "float32")
    for text, reason in (
        ("{", "is not JSON"),
        ("[]", "not a JSON object"),
        ('{"model_cfg": {}}', "has no `vision_cfg`"),
    ):
        path.write_text(text)
        with pytest.raises(WeightsError, match=reason):
            EmbedGenerator(folder).load(studio.ModelRef(), "cpu", "float32")
    other = {**good["model_cfg"], "text_cfg": {"hf_model_name": "owner/tower"}}
    path.write_text(json.dumps({**good, "model_cfg": other}))
    with pytest.raises(WeightsError, match="`owner/tower`, whose config"):
        EmbedGenerator(folder).load(studio.ModelRef(), "cpu", "float32")
