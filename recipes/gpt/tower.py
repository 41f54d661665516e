"""Initialise a decoder from a CLIP text tower.

CLIP's text tower (Radford 2021, arXiv:2103.00020) has the architecture of GPT-2: causal attention, learned positions,
pre-LayerNorm. So its blocks become a decoder's unchanged, and each token of another tokenizer is initialised with the
embedding of the tower's token of the same text, or the mean of the tokens that spell it. A tower has no output head:
the decoder's is an untied matrix of zeros.

Try it: ``python -m recipes.gpt --begin PIPELINE/text_encoder`` (with the tower's ``tokenizer`` folder beside it)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import studio.weights.loading
from studio.errors import WeightsError
from studio.loaders import transformers
from studio_gpt import load
from studio_gpt.config import Config
from studio_gpt.corpus import END, ROLES
from studio_gpt.families import Fields, StoredParameter
from studio_gpt.model import GPT

if TYPE_CHECKING:
    import tokenizers

SPACE = "Ġ"  # a space in byte-level BPE
SPECIALS = {END: "<|endoftext|>", **dict.fromkeys(ROLES, "<|startoftext|>"), ROLES[-1]: "<|endoftext|>"}
"""The tower pools a text at its end token, so the assistant's role, which ends a prompt, begins with that embedding."""


def config_of(values: Mapping[str, Any], vocab: int, context: int) -> Config:
    """The decoder's shape, from a tower's config.json. Raises UsageError for what is not supported."""
    f = Fields(values)
    width = f.whole("hidden_size", 512, "width")
    return Config(
        vocab=vocab, context=context, layers=f.whole("num_hidden_layers", 12, "layers"), width=width,
        heads=f.whole("num_attention_heads", 8, "heads"), hidden=f.whole("intermediate_size", 2048, "hidden"),
        eps=f.number("layer_norm_eps", 1e-5), activation=f.activation("hidden_act", "quick_gelu"), tied=False,
    )  # fmt: skip


def plan_of(config: Config, vocab: int, context: int) -> dict[str, StoredParameter]:
    """Where the decoder's parameters are stored in a tower of `vocab` tokens and `context` positions."""
    plan = {
        "embed.weight": StoredParameter(("embeddings.token_embedding.weight",), (vocab,)),
        "places.weight": StoredParameter(("embeddings.position_embedding.weight",), (context,)),
    }

    def add(ours: str, names: tuple[str, ...], rows: int) -> None:
        for kind in ("weight", "bias"):
            plan[f"{ours}.{kind}"] = StoredParameter(tuple(f"{name}.{kind}" for name in names), (rows,) * len(names))

    for i in range(config.layers):
        ours, theirs = f"blocks.{i}.", f"encoder.layers.{i}."
        add(ours + "norm_1", (theirs + "layer_norm1",), config.width)
        add(ours + "qkv", tuple(f"{theirs}self_attn.{each}_proj" for each in "qkv"), config.width)
        add(ours + "out", (theirs + "self_attn.out_proj",), config.width)
        add(ours + "norm_2", (theirs + "layer_norm2",), config.width)
        add(ours + "up", (theirs + "mlp.fc1",), config.hidden)
        add(ours + "down", (theirs + "mlp.fc2",), config.width)
    add("norm", ("final_layer_norm",), config.width)
    return plan


def decoder(folder: Path, tokenizer: tokenizers.Tokenizer, context: int) -> GPT:
    """A GPT-2 of the tower's layers and the tokenizer's tokens, in float32; positions beyond the tower's are
    initialised with its last.

    Raises WeightsError if the folder is not a text tower, is damaged, or has no tokenizer beside it, and UsageError for
    an unsupported activation (`quick_gelu` of OpenAI's towers).
    """
    values = load.read_json(folder / "config.json")
    if (kind := values.get("model_type")) != "clip_text_model":
        message = f"`{folder}` is not a CLIP text tower: its model type is {kind!r:.60}"
        raise WeightsError(folder, message, hint="use the folder `text_encoder` of a diffusers pipeline")
    rows, known = (
        Fields(values).whole("vocab_size", 49408, "vocab"),
        Fields(values).whole("max_position_embeddings", 77, "context"),
    )
    config = config_of(values, tokenizer.get_vocab_size(), context)
    beside = folder.parent / "tokenizer"
    if not beside.is_dir():
        hint = "copy the tower's tokenizer there: embeddings are matched by token text"
        raise WeightsError(beside, f"there is no `{beside}` beside the text tower", hint=hint)
    source = studio.weights.loading.SafetensorsSource([folder / "model.safetensors"], _plain_name, "cpu", torch.float32)
    stored = load.RemappedTensors(source, plan_of(config, rows, known))
    weights = {name: stored.read(name) for name in stored.plan}
    theirs = transformers.tokenizer("CLIPTokenizer", beside)
    weights["embed.weight"] = embeddings(weights["embed.weight"], theirs, tokenizer)
    weights["head.weight"] = torch.zeros_like(weights["embed.weight"])
    places = weights["places.weight"]  # (known, C)
    weights["places.weight"] = places[torch.arange(context).clamp(max=known - 1)]
    model = GPT(config)
    model.load_state_dict(weights, strict=True)
    return model


def embeddings(rows: Tensor, theirs: Any, ours: tokenizers.Tokenizer) -> Tensor:
    """The initial embeddings (vocab, C) of our tokens, from the tower's embeddings `rows` by token text.

    Both tokenizers are byte-level; the tower's is lower case, and `</w>` ends a word.
    """
    known: dict[str, int] = theirs.get_vocab()
    made = rows.mean(0).repeat(ours.get_vocab_size(), 1)  # for tokens that the tower's cannot spell, such as newlines
    for token, place in ours.get_vocab().items():
        if token in SPECIALS:
            made[place] = rows[known[SPECIALS[token]]]
            continue
        text = "".join(letter.lower() if letter.isascii() else letter for letter in token.removeprefix(SPACE))
        same = next((known[each] for each in (f"{text}</w>", text) if each in known), None)
        if same is not None:
            made[place] = rows[same]
        elif spelt := theirs.encode(ours.decode([place]), add_special_tokens=False):
            made[place] = rows[spelt].mean(0)
    return made


def _plain_name(stored: str) -> str | None:
    """A tensor's name without the prefix of the class that saved it; None for the projection, which a decoder lacks."""
    name = stored.removeprefix("text_model.")
    return None if name.startswith(("text_projection", "embeddings.position_ids")) else name
