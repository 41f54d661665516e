"""A decoder that begins with what a CLIP text tower knows.

CLIP's text tower (Radford 2021, arXiv:2103.00020) is a GPT-2 in all but names: causal, learned positions, LayerNorm
before each part. So its blocks become a decoder's as they are, and each token of another tokenizer begins with the
embedding of the tower's token of the same text, or the mean of those that spell it. A tower has never said a token: the
head is a matrix of its own, of zeros. Knows nothing of training.

Try it: ``studio train gpt --begin PIPELINE/text_encoder`` (with the tower's ``tokenizer`` folder beside it)
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
from studio_gpt.corpus import END, ROLES
from studio_gpt.families import Fields, Stored
from studio_gpt.model import GPT, Config

if TYPE_CHECKING:
    import tokenizers

SPACE = "Ġ"  # how a byte-level BPE writes a space
SPECIALS = {END: "<|endoftext|>", **dict.fromkeys(ROLES, "<|startoftext|>"), ROLES[-1]: "<|endoftext|>"}
"""The tower pools a text at its end, so there its meaning stands: that is where the assistant begins."""


def config_of(values: Mapping[str, Any], vocab: int, context: int) -> Config:
    """The decoder's shape, of a tower's config.json. Raises UsageError for what this decoder has not."""
    f = Fields(values)
    width = f.whole("hidden_size", 512, "width")
    return Config(
        vocab=vocab, context=context, layers=f.whole("num_hidden_layers", 12, "layers"), width=width,
        heads=f.whole("num_attention_heads", 8, "heads"), hidden=f.whole("intermediate_size", 2048, "hidden"),
        eps=f.number("layer_norm_eps", 1e-5), activation=f.activation("hidden_act", "quick_gelu"), tied=False,
    )  # fmt: skip


def plan_of(config: Config, vocab: int, context: int) -> dict[str, Stored]:
    """Where the decoder's parameters stand in a tower of `vocab` tokens and `context` positions."""
    plan = {
        "embed.weight": Stored(("embeddings.token_embedding.weight",), (vocab,)),
        "places.weight": Stored(("embeddings.position_embedding.weight",), (context,)),
    }

    def add(ours: str, names: tuple[str, ...], rows: int) -> None:
        for kind in ("weight", "bias"):
            plan[f"{ours}.{kind}"] = Stored(tuple(f"{name}.{kind}" for name in names), (rows,) * len(names))

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
    """A GPT-2 of the tower's layers and the tokenizer's tokens, in float32; positions beyond the tower's begin as its
    last.

    Raises WeightsError if the folder is no tower, is damaged, or has no tokenizer beside it, and UsageError for an
    activation that this decoder has not (`quick_gelu` of OpenAI's own towers).
    """
    values = load.read_json(folder / "config.json")
    if (kind := values.get("model_type")) != "clip_text_model":
        message = f"`{folder}` is no CLIP text tower but of the type {kind!r:.60}"
        raise WeightsError(folder, message, hint="name the folder `text_encoder` of a pipeline")
    rows, known = (
        Fields(values).whole("vocab_size", 49408, "vocab"),
        Fields(values).whole("max_position_embeddings", 77, "context"),
    )
    config = config_of(values, tokenizer.get_vocab_size(), context)
    beside = folder.parent / "tokenizer"
    if not beside.is_dir():
        hint = "copy the tower's tokenizer there: its tokens' embeddings are taken over by their texts"
        raise WeightsError(beside, f"there is no `{beside}` beside the text tower", hint=hint)
    source = studio.weights.loading.Source([folder / "model.safetensors"], _plain_name, "cpu", torch.float32)
    stored = load.Arranged(source, plan_of(config, rows, known))
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
    """For each of our tokens its row to begin with (vocab, C), from the tower's `rows` by the text that it stands for.

    Both are byte-level, so a token's spelling says its bytes; the tower's are lower case, and `</w>` ends a word.
    """
    known: dict[str, int] = theirs.get_vocab()
    made = rows.mean(0).repeat(ours.get_vocab_size(), 1)  # what nothing of the tower's spells: newlines, for one
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
    """A tensor's name whichever class saved it; None for the projection, which a decoder has not."""
    name = stored.removeprefix("text_model.")
    return None if name.startswith(("text_projection", "embeddings.position_ids")) else name
