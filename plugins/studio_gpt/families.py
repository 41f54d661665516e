"""Architectures: config.json and tensor names of transformers, mapped to this decoder's, and back.

Supported are GPT-2, Llama (SmolLM too), Mistral, Qwen2 and Qwen3. A configuration that needs more (other RoPE scalings,
mixture of experts, other activations) is rejected by name. Files are read by `load.py`.

Try it: ``python -c "from studio_gpt.families import *; print(config_of({'model_type': 'gpt2', 'n_layer': 2}))"``
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from studio.errors import UsageError
from studio_gpt.config import Config, Rope

HEAD = "lm_head.weight"
FAMILIES = ("gpt2", "llama", "mistral", "qwen2", "qwen3")
_LARGEST = {"vocab": 1 << 22, "context": 1 << 24, "layers": 1024, "heads": 4096, "kv_heads": 4096, "head_dim": 1 << 14,
            "width": 1 << 17, "hidden": 1 << 20}  # fmt: skip
_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu",
                "silu": "silu", "swish": "silu"}  # fmt: skip
# Defaults of transformers' classes for fields that a config.json omits.
_ABSENT: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {"max_position_embeddings": 131_072, "num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {"max_position_embeddings": 32_768, "num_key_value_heads": 32, "sliding_window": 4096},
    "qwen3": {"max_position_embeddings": 32_768, "num_key_value_heads": 32, "sliding_window": 4096, "head_dim": 128},
}


@dataclass(frozen=True)
class StoredParameter:
    """Where a parameter of this decoder is stored: tensors that are concatenated along the first axis.

    Attributes:
        names: of the stored tensors.
        rows: of each of them, in this decoder's layout.
        transposed: stored as (in, out), as in GPT-2.
        pairs: for each of them the number of heads whose rows are interleaved pairs, as GGUF stores Llama; 0 is none.
    """

    names: tuple[str, ...]
    rows: tuple[int, ...]
    transposed: bool = False
    pairs: tuple[int, ...] = ()


class Fields:
    """An untrusted configuration, whose types and ranges are checked. Raises UsageError."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def whole(self, name: str, default: int | None, kind: str) -> int:
        """A whole number from 1 to the limit of its kind."""
        value = self.values.get(name)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _LARGEST[kind]:
            raise UsageError(f"`{name}` is {value!r:.60}; it must be a whole number from 1 to {_LARGEST[kind]:,}")
        return value

    def number(self, name: str, default: float) -> float:
        """A number above 0."""
        value = self.values.get(name)
        value = default if value is None else value
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e12:
            raise UsageError(f"`{name}` is {value!r:.60}; it must be a number above 0")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, bool):
            raise UsageError(f"`{name}` is {value!r:.60}; it must be true or false")
        return default if value is None else value

    def activation(self, name: str, default: str) -> str:
        """The activation, under this decoder's name."""
        value = self.values.get(name) or default
        if value not in _ACTIVATIONS:
            raise UsageError(f"`{name}` is {value!r:.60}; supported: {', '.join(_ACTIVATIONS)}")
        return _ACTIVATIONS[value]


def config_of(values: Mapping[str, Any]) -> Config:
    """The decoder shape of a transformers config.json. Raises UsageError for what is not supported."""
    family = values.get("model_type")
    if family not in FAMILIES:
        raise UsageError(f"the model type is {family!r:.60}; supported: {', '.join(FAMILIES)}")
    if values.get("quantization_config"):
        raise UsageError(
            "its weights have a `quantization_config`, which is not supported",
            hint="use the unquantized weights, or a GGUF file",
        )
    return _gpt2(Fields(values)) if family == "gpt2" else _llama(Fields({**_ABSENT[family], **values}), family)


def _gpt2(f: Fields) -> Config:
    if not f.flag("scale_attn_weights", True) or f.flag("scale_attn_by_inverse_layer_idx", False):
        raise UsageError("it scales attention by other than head_dim, which is not supported")
    width = f.whole("n_embd", 768, "width")
    return Config(
        vocab=f.whole("vocab_size", 50257, "vocab"), context=f.whole("n_positions", 1024, "context"),
        layers=f.whole("n_layer", 12, "layers"), heads=f.whole("n_head", 12, "heads"), width=width,
        hidden=f.whole("n_inner", 4 * width, "hidden"), eps=f.number("layer_norm_epsilon", 1e-5),
        activation=f.activation("activation_function", "gelu_new"), tied=f.flag("tie_word_embeddings", True),
    )  # fmt: skip


def _llama(f: Fields, family: str) -> Config:
    heads = f.whole("num_attention_heads", 32, "heads")
    width = f.whole("hidden_size", 4096, "width")
    layers = f.whole("num_hidden_layers", 32, "layers")
    bias = family == "qwen2" or (family != "mistral" and f.flag("attention_bias", False))
    return Config(
        vocab=f.whole("vocab_size", 32_000, "vocab"), context=f.whole("max_position_embeddings", None, "context"),
        layers=layers, heads=heads, width=width, kv_heads=f.whole("num_key_value_heads", heads, "kv_heads"),
        head_dim=f.whole("head_dim", width // heads, "head_dim"), hidden=f.whole("intermediate_size", 11_008, "hidden"),
        rope=_rope(f), norm="rms", eps=f.number("rms_norm_eps", 1e-6), activation=f.activation("hidden_act", "silu"),
        gated=True, qkv_bias=bias, out_bias=bias and family != "qwen2",
        mlp_bias=family == "llama" and f.flag("mlp_bias", False), qk_norm=family == "qwen3",
        windows=_windows(f, family, layers), tied=f.flag("tie_word_embeddings", False),
    )  # fmt: skip


def _windows(f: Fields, family: str, layers: int) -> tuple[int | None, ...]:
    """Sliding windows: in every layer of Mistral, in Qwen in the layers that `layer_types` names, or the last ones."""
    if family == "llama" or f.values.get("sliding_window") is None:
        return ()
    window = f.whole("sliding_window", None, "context")
    if family == "mistral":
        return (window,) * layers
    if not f.flag("use_sliding_window", False):
        return ()
    first = f.values.get("max_window_layers", 28)
    kinds = f.values.get("layer_types") or [
        "sliding_attention" if layer >= first else "full_attention" for layer in range(layers)
    ]
    if len(kinds) != layers or not set(kinds) <= {"sliding_attention", "full_attention"}:
        raise UsageError(
            f"`layer_types` is {kinds!r:.60}; it must be `full_attention` or `sliding_attention` for each layer"
        )
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _rope(f: Fields) -> Rope:
    """RoPE: transformers 5 has `rope_parameters`; earlier versions have `rope_theta` and `rope_scaling`."""
    found = f.values.get("rope_parameters") or f.values.get("rope_scaling") or {}
    if not isinstance(found, dict):
        raise UsageError(f"`rope_parameters` is {found!r:.60}; it must be an object")
    kind = found.get("rope_type", found.get("type", "default"))
    if kind not in ("default", "linear", "llama3"):
        raise UsageError(f"the RoPE scaling is `{kind!s:.40}`; supported: default, linear, llama3")
    if f.values.get("partial_rotary_factor", found.get("partial_rotary_factor", 1.0)) != 1.0:
        raise UsageError("it has partial RoPE (`partial_rotary_factor`), which is not supported")
    theta = Fields({"rope_theta": found.get("rope_theta", f.values.get("rope_theta"))}).number("rope_theta", 10_000.0)
    r = Fields(found)
    if kind == "default":
        return Rope(theta)
    if kind == "linear":
        return Rope(theta, kind, r.number("factor", 1.0))
    return Rope(
        theta, kind, r.number("factor", 1.0), r.number("low_freq_factor", 1.0), r.number("high_freq_factor", 4.0),
        r.whole("original_max_position_embeddings", f.whole("max_position_embeddings", None, "context"), "context"),
    )  # fmt: skip


def plan_of(config: Config, family: str) -> dict[str, StoredParameter]:
    """Where each parameter is stored in a folder of that family; a tied head is not stored."""
    plan: dict[str, StoredParameter] = {}

    def add(ours: str, names: tuple[str, ...], rows: tuple[int, ...], bias: bool = False, turn: bool = False) -> None:
        plan[f"{ours}.weight"] = StoredParameter(tuple(f"{name}.weight" for name in names), rows, turn)
        if bias:
            plan[f"{ours}.bias"] = StoredParameter(tuple(f"{name}.bias" for name in names), rows)

    gpt2, layer = family == "gpt2", _gpt2_layer if family == "gpt2" else _llama_layer
    for i in range(config.layers):
        layer(config, i, add)
    if gpt2:
        add("places", ("wpe",), (config.context,))
    add("embed", (embedding_of(family).removesuffix(".weight"),), (config.vocab,))
    add("norm", ("ln_f" if gpt2 else "norm",), (config.width,), gpt2)
    if not config.tied:
        add("head", ("lm_head",), (config.vocab,))
    return plan


def embedding_of(family: str) -> str:
    """The stored name of a family's embedding."""
    return "wte.weight" if family == "gpt2" else "embed_tokens.weight"


def _gpt2_layer(c: Config, i: int, add: Callable[..., None]) -> None:
    ours, at = f"blocks.{i}.", f"h.{i}."
    add(ours + "norm_1", (at + "ln_1",), (c.width,), True)
    add(ours + "qkv", (at + "attn.c_attn",), (3 * c.heads * c.head_dim,), True, True)
    add(ours + "out", (at + "attn.c_proj",), (c.width,), True, True)
    add(ours + "norm_2", (at + "ln_2",), (c.width,), True)
    add(ours + "up", (at + "mlp.c_fc",), (c.hidden,), True, True)
    add(ours + "down", (at + "mlp.c_proj",), (c.width,), True, True)


def _llama_layer(c: Config, i: int, add: Callable[..., None]) -> None:
    ours, at = f"blocks.{i}.", f"layers.{i}."
    qkv = (c.heads * c.head_dim, c.kv_heads * c.head_dim, c.kv_heads * c.head_dim)
    add(ours + "norm_1", (at + "input_layernorm",), (c.width,))
    add(ours + "qkv", tuple(f"{at}self_attn.{each}_proj" for each in "qkv"), qkv, c.qkv_bias)
    add(ours + "out", (at + "self_attn.o_proj",), (c.width,), c.out_bias)
    add(ours + "norm_2", (at + "post_attention_layernorm",), (c.width,))
    add(ours + "up", tuple(f"{at}mlp.{each}_proj" for each in ("gate", "up")), (c.hidden, c.hidden), c.mlp_bias)
    add(ours + "down", (at + "mlp.down_proj",), (c.width,), c.mlp_bias)
    for each in ("q", "k") if c.qk_norm else ():
        add(f"{ours}{each}_norm", (f"{at}self_attn.{each}_norm",), (c.head_dim,))


def plain_name(stored: str, tied: bool) -> str | None:
    """A stored name without the prefix of the class that saved it; None for tensors that this decoder does not have.

    These are masks and frequencies in old folders, and the copy of a tied head.
    """
    name = stored.removeprefix("transformer.").removeprefix("model.")
    if name.endswith((".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")) or (tied and name == HEAD):
        return None
    return name


def values_of(config: Config) -> dict[str, Any]:
    """The config.json of a decoder with learned positions (GPT-2) or plain rotary ones (Llama, Qwen3).

    Raises UsageError for a shape that none of these has.
    """
    c = config
    shared = {"vocab_size": c.vocab, "tie_word_embeddings": c.tied}
    if c.rope is None and c == _gpt2(Fields(found := {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], **shared, "n_positions": c.context,
        "n_embd": c.width, "n_layer": c.layers, "n_head": c.heads, "n_inner": c.hidden,
        "layer_norm_epsilon": c.eps, "activation_function": _theirs(c.activation),
    })):  # fmt: skip
        return found
    family = "qwen3" if c.qk_norm else "llama"
    found = {
        "model_type": family, "architectures": [f"{family.capitalize()}ForCausalLM"], **shared,
        "max_position_embeddings": c.context, "hidden_size": c.width, "intermediate_size": c.hidden,
        "num_hidden_layers": c.layers, "num_attention_heads": c.heads, "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim, "rms_norm_eps": c.eps, "hidden_act": _theirs(c.activation),
        "attention_bias": c.qkv_bias, "mlp_bias": c.mlp_bias,
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope.theta if c.rope else 0},
    }  # fmt: skip
    if c.rope is None or config_of(found) != c:
        raise UsageError("the decoder cannot be saved: its shape is not that of GPT-2, Llama or Qwen3")
    return found


def _theirs(activation: str) -> str:
    return next(name for name, ours in _ACTIVATIONS.items() if ours == activation)
