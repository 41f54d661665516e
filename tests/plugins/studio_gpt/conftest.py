"""Tiny random checkpoints of every family, as transformers writes them, and a tokenizer trained on a few lines."""

import json
from pathlib import Path

import pytest
import torch

from studio.devices import torch_setup

torch_setup.prepare()

VOCAB = 320
LINES = [
    "The animal didn't cross the street because it was too tired.",
    "A red apple lies on the table, and 23 more in the box.",
    "Über allen Gipfeln ist Ruh; 一个红苹果; naïve café 🍎👩‍🚀",
    "for each of them, a story: once upon a time there was a king",
]
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip
# Family and what makes it that one; weights are drawn wide, so that logits are far apart.
CHECKPOINTS = {
    "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}),
    "llama": ("Llama", {**SMALL, "num_key_value_heads": 2}),
    "llama-3": ("Llama", {**SMALL, "num_key_value_heads": 1, "rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama-biased": ("Llama", {**SMALL, "attention_bias": True, "mlp_bias": True, "head_dim": 16,
                               "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
    "mistral": ("Mistral", {**SMALL, "num_key_value_heads": 2, "sliding_window": 24}),
    "qwen2": ("Qwen2", {**SMALL, "num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 16,
                        "max_window_layers": 1, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {**SMALL, "num_key_value_heads": 2, "head_dim": 16}),
}  # fmt: skip


def stock(name, folder=None):
    """Transformers' model of a checkpoint, random and in float32; saved to `folder` if that is given."""
    import transformers

    family, values = CHECKPOINTS[name]
    torch.manual_seed(sorted(CHECKPOINTS).index(name))
    room = {} if family == "GPT2" else {"max_position_embeddings": 512}
    config = getattr(transformers, f"{family}Config")(
        vocab_size=VOCAB, **room, **values, bos_token_id=0, eos_token_id=1
    )
    kind = getattr(transformers, f"{family}LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM")
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2) if parameter.dim() > 1 else parameter.add_(0.1 * torch.randn_like(parameter))
    if folder is not None:
        model.save_pretrained(folder)
    return model


def train_tokenizer():
    """A byte-level BPE of `VOCAB` tokens, the first three special."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=["<s>", "</s>", "<pad>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(LINES * 4, trainer)
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer()


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory, tokenizer):
    """Folder of a checkpoint by its name, made once; and transformers' model of it."""
    made = {}

    def get(name) -> tuple[Path, torch.nn.Module]:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = folder, stock(name, folder)
            tokenizer.save(str(folder / "tokenizer.json"))
        return made[name]

    return get


TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}|{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)


@pytest.fixture
def model(checkpoints):
    """The path of a checkpoint that has a chat template meanwhile: `u:` is the person and `a:` the model."""
    folder, _ = checkpoints("llama")
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE}))
    yield str(folder)
    file.unlink()
