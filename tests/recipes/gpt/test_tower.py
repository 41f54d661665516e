"""A decoder that begins with a CLIP text tower: it thinks what the tower thinks."""

from __future__ import annotations

import json

import pytest
import torch

from recipes.command import PLUGIN
from recipes.gpt import tower
from recipes.gpt.trainer import TrainGPT
from studio.cli.main import run
from studio.devices import torch_setup
from studio.errors import UsageError, WeightsError
from studio_gpt import corpus, load

torch_setup.prepare()

WORDS = ["a red apple", "一个红苹果", "octopus", "apples and pears", "the apple is red"] * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from recipes.text import tokenizer

    made = tmp_path_factory.mktemp("pipeline")
    tokenizer.train(WORDS, made / "tokenizer")
    size = len(CLIPTokenizer.from_pretrained(made / "tokenizer"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPTextModel(CLIPTextConfig(
            vocab_size=size, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=12, hidden_act="gelu", bos_token_id=size - 2, eos_token_id=size - 1,
        ))  # fmt: skip
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(made / "text_encoder")
    return made / "text_encoder"


@pytest.fixture(scope="module")
def bpe():
    return corpus.train_tokenizer(WORDS, 400)


@torch.inference_mode()
def test_it_thinks_of_a_text_what_the_tower_thinks(folder, bpe):
    from transformers import CLIPTextModel, CLIPTokenizer

    model = tower.decoder(folder, bpe, 20)
    seen = []
    model.norm.register_forward_hook(lambda module, given, made: seen.append(made))
    theirs, words = CLIPTextModel.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder.parent / "tokenizer")
    for text in ("a red apple", "octopus", "the apple is red", "一个红苹果"):
        model(torch.tensor([bpe.encode(f"<|user|>{text}<|assistant|>").ids]))
        wanted = theirs(**words(text, return_tensors="pt")).last_hidden_state
        assert seen[-1].shape == wanted.shape
        assert torch.allclose(seen[-1], wanted, atol=1e-5)


def test_unknown_words_begin_as_the_mean_of_what_spells_them_and_late_places_as_the_last(folder, bpe):
    from safetensors.torch import load_file
    from transformers import CLIPTokenizer

    stored = {name.removeprefix("text_model."): each for name, each in load_file(folder / "model.safetensors").items()}
    rows = stored["embeddings.token_embedding.weight"]
    words = CLIPTokenizer.from_pretrained(folder.parent / "tokenizer")
    wider = corpus.train_tokenizer([*WORDS, *["zebra zebra zebra"] * 9], 420)
    model = tower.decoder(folder, wider, 20)
    spelt = words("zebra", add_special_tokens=False).input_ids
    assert len(spelt) > 1
    assert torch.allclose(model.embed.weight[wider.token_to_id("Ġzebra")], rows[spelt].mean(0))
    assert torch.equal(model.embed.weight[wider.token_to_id("Ġapple")], model.embed.weight[wider.token_to_id("apple")])
    assert torch.equal(model.places.weight[12:], model.places.weight[11].expand(8, -1))
    assert not model.head.weight.any()


def test_the_command_goes_on_from_it(folder, tmp_path, capfd):
    for name in ("gpt/texts/documents.txt", "gpt/texts/novels.txt", "gpt-chat/chats.jsonl"):  # as a run left them
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("\n".join(WORDS * 40))
    given = ["--plugin", str(PLUGIN), "train", TrainGPT.name, "--work", str(tmp_path), "--begin", str(folder)]
    assert run([*given, "--vocab", "400", "--context", "16", "--batch", "4", "--steps", "3"]) == 0, capfd.readouterr()
    found = load.find(tmp_path / "gpt" / "model")
    assert (found.config.layers, found.config.width, found.config.heads, found.config.activation) == (2, 32, 4, "gelu")
    assert found.config.rope is None


def test_what_is_no_tower_is_refused(folder, bpe, tmp_path):
    with pytest.raises(WeightsError, match=r"cannot read `.*config\.json`"):
        tower.decoder(tmp_path, bpe, 20)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "tower").mkdir(exist_ok=True)
        (tmp_path / "tower" / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(WeightsError, match="beside the text tower"):
        tower.decoder(tmp_path / "tower", bpe, 20)
    values = json.loads((folder / "config.json").read_text())
    (tmp_path / "tower" / "config.json").write_text(json.dumps({**values, "model_type": "gpt2"}))
    with pytest.raises(WeightsError, match="not a CLIP text tower"):
        tower.decoder(tmp_path / "tower", bpe, 20)
    (tmp_path / "tower" / "config.json").write_text(json.dumps({**values, "hidden_act": "quick_gelu"}))
    with pytest.raises(UsageError, match="quick_gelu"):
        tower.decoder(tmp_path / "tower", bpe, 20)
