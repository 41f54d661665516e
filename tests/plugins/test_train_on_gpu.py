"""Every shipped training recipe for two steps on the fake GPU: devices do not mix, and it learns the CPU's bits."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from studio.devices import torch_setup
from studio.devices.cpu import Cpu
from studio.plugins import Plugins
from studio.testing.fake_gpu import FakeGpu

torch_setup.prepare()

Train = Callable[[Path, torch.device], Any]
LINES = ["the red apple lies on the table", "a green pear lies on the chair", "the blue bird sings in the tree"]
CAPTIONS = ["apple", "pear", "red car", "octopus"]
PAIRS = [("round fruit", "a red apple"), ("it sings", "a blue bird"), ("where to sit", "a brown chair")]


def pictures(size: int, count: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def decoder(device: torch.device, tied: bool = True) -> Any:
    from studio_gpt.config import llama
    from studio_gpt.model import GPT

    shape = llama(vocab=300, context=48, layers=1, heads=2, width=32, hidden=64, tied=tied)
    return GPT(shape).initialise(torch.Generator().manual_seed(0)).to(device)


def token_file(folder: Path) -> Any:
    from studio_gpt import corpus

    folder.mkdir(parents=True, exist_ok=True)
    bpe = corpus.train_tokenizer(LINES * 3, 300)
    corpus.encode([f"{line}{corpus.END}" for line in LINES * 60], bpe, folder / "tokens.bin")
    return corpus.TokenFile(folder / "tokens.bin", bpe.get_vocab_size(), 16)


def gpt(folder: Path, device: torch.device) -> Any:
    from studio_gpt import train

    data = token_file(folder)
    model = train.train(decoder(device), data, folder, steps=2, batch=4, accumulate=2)
    assert np.isfinite(train.validate(model, data, 4))
    return model


def gpt_chat(folder: Path, device: torch.device, lora: int = 0) -> Any:
    from studio_gpt import corpus, tune

    texts = token_file(folder)
    tokens = corpus.as_tokens(corpus.train_tokenizer([text for pair in PAIRS for text in pair] * 3, 300))
    chats = [[{"role": "user", "content": one}, {"role": "assistant", "content": other}] for one, other in PAIRS]
    found = [tune.sample(each, tokens, 48) for each in chats]
    samples = [each for each in found if each is not None]
    model = decoder(device, tied=False)
    tune.probe(model, samples, phrase=[5], emphasis=2.0, batch=4)
    return tune.train(model, samples, folder, steps=2, batch=2, lora=lora, held_out=samples, phrase=[5], emphasis=2.0,
                      validate_every=1, texts=texts, rows=2)  # fmt: skip


def lora(folder: Path, device: torch.device) -> Any:
    pytest.importorskip("peft")
    return gpt_chat(folder, device, lora=4)


def tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    from recipes.text import tokenizer

    if not (folder / "tokenizer").exists():
        tokenizer.train(["a red apple", "一个红苹果", "octopus"] * 3, folder / "tokenizer")
    return CLIPTokenizer.from_pretrained(folder / "tokenizer")


def text_tower(size: int) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    torch.manual_seed(0)
    return CLIPTextModelWithProjection(CLIPTextConfig(
        vocab_size=size, hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=48, hidden_act="gelu", projection_dim=384,
        bos_token_id=size - 2, eos_token_id=size - 1, pad_token_id=size - 1,
    ))  # fmt: skip


def clip(folder: Path, device: torch.device, which: str = "none", image: str = "vit") -> Any:
    from studio_clip import train_pairs

    tokens = tokenizer(folder)
    model = train_pairs.build(text_tower(len(tokens)), image)
    train_pairs.lock(model, which)
    return train_pairs.train(pictures(64), CAPTIONS, model, tokens, folder, device=device, steps=2, minutes=60,
                             batch=4, chunk=3)  # fmt: skip


def locked_clip(folder: Path, device: torch.device) -> Any:
    return clip(folder, device, "both", "efficientnet")


def vae(folder: Path, device: torch.device) -> Any:
    from studio_diffusion import export, train_vae

    shown = pictures(128)
    model = train_vae.train(shown, np.array([0, 2]), folder, device=device, steps=2, minutes=60, whole=0.4)
    export.whiten(model, shown)
    return train_vae.train(shown, np.array([0, 2]), folder / "decoder", device=device, steps=1, minutes=60,
                           decoder_of=model.requires_grad_(True))  # fmt: skip


def image(folder: Path, device: torch.device) -> Any:
    from studio_diffusion import train_image

    states = randn(1, 5, 192).to(device)
    return train_image.train(randn(4, 8, 16, 16), CAPTIONS, lambda texts: states.repeat(len(texts), 1, 1), folder,
                             device=device, steps=2, minutes=60, batch=2)  # fmt: skip


def ddpm(folder: Path, device: torch.device) -> Any:
    from studio.diffusion.noise import NoiseSchedule, config
    from studio_diffusion import train_pixel

    return train_pixel.train(
        pictures(16), ["pear", "apple", "pear", "fig"], NoiseSchedule(config("cosine", "v")), folder, device=device,
        steps=2, minutes=60, batch=2,
    )[0]  # fmt: skip


def dcgan(folder: Path, device: torch.device) -> Any:
    from studio_dcgan import train

    return train.train(pictures(64), ["red", "blue", "red", "green"], folder, device=device, steps=2, minutes=60,
                       batch=4, width=8, grid_every=2)[0]  # fmt: skip


def video(folder: Path, device: torch.device) -> Any:
    from studio_video import train
    from studio_video.model import VideoConfig

    def encode(texts: Sequence[str]) -> list[torch.Tensor]:
        return [randn(1 + len(text.split()), 6).to(device) for text in texts]

    clips = [randn(20, 2, 8, 8), randn(1, 2, 8, 8)]
    shape = VideoConfig(width=32, depth=1, head_dim=16, mlp=64, channels=2, text=6)
    return train.train(lambda rng, frames, _: train.draw_clips(clips, CAPTIONS, rng, frames), "data", encode, folder,
                       device=device, steps=2, minutes=60, frames=8, config=shape)  # fmt: skip


RECIPES: dict[str, Train] = {
    "gpt": gpt, "gpt-chat": gpt_chat, "clip": clip, "vae": vae, "image": image, "ddpm": ddpm,
    "dcgan": dcgan, "video": video,
}  # fmt: skip
VARIANTS: dict[str, Train] = {"gpt-chat with adapters": lora, "clip with locked towers": locked_clip}
SLOW = {"clip", "vae", "image", "ddpm", "clip with locked towers"}


def moments(folder: Path) -> torch.Tensor:
    """Adam's means of the gradients after two steps, of all parameters, in one row."""
    with safetensors.safe_open(folder / "run.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["counters"])["step"] == 2
        names = sorted(name for name in file.keys() if name.endswith(".exp_avg"))  # noqa: SIM118 (not a dict)
        return torch.cat([file.get_tensor(name).flatten() for name in names])


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in RECIPES | VARIANTS]
)
def test_a_recipe_learns_on_a_gpu_what_it_does_on_the_cpu(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = (RECIPES | VARIANTS)[name]
    monkeypatch.setattr(Cpu, "fast_dtype", lambda _: "float32")  # as on a processor without bfloat16
    train(tmp_path / "cpu", torch.device("cpu"))
    with FakeGpu.installed():
        model = train(tmp_path / "gpu", torch.device("gpu:0"))
        assert {each.device.type for each in model.state_dict().values()} == {"gpu"}
    expected, learnt = moments(tmp_path / "cpu"), moments(tmp_path / "gpu")
    assert expected.norm() > 0
    assert torch.equal(learnt, expected)


def test_all_recipes_that_learn_are_here() -> None:
    trainers = Plugins.discover().trainers
    assert {name for name, each in trainers.items() if each.runs} == {*RECIPES}
