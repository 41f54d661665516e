"""A model in a GGUF file: its shape, its tensor names, and its tokenizer.

Supported architectures are gpt2, llama (Mistral and SmolLM too), qwen2 and qwen3. Llama's query and key rows are stored
as interleaved pairs, and are reordered.

Try it: ``studio text --model model.gguf "Once upon a time"``
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from studio.errors import UsageError
from studio_gpt.config import Config, Rope
from studio_gpt.families import Fields, StoredParameter
from studio_gpt.tokens import TURN_ENDS, Tokens

if TYPE_CHECKING:
    import tokenizers

ARCHITECTURES = ("gpt2", "llama", "qwen2", "qwen3")
_CONTROL, _USER_DEFINED = 3, 4
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,%d}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
# Pre-tokenizers by the name of llama.cpp: a pattern, or single digits and then GPT-2's pattern, or GPT-2's pattern.
_PRE_TOKENIZERS: dict[str, str] = {
    "gpt-2": "", "smollm": "digits", "llama-bpe": _WORDS % 3, "llama3": _WORDS % 3, "llama-v3": _WORDS % 3,
    "qwen2": _WORDS % 1, "deepseek-r1-qwen": _WORDS % 1,
}  # fmt: skip
_LLAMA3 = ("llama-bpe", "llama3", "llama-v3")  # these match whole words first, and begin a text with BOS


def config_of(metadata: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]], divisors: Sequence[float]) -> Config:
    """The shape in the metadata; `tensors` are shapes by name, `divisors` the numbers of `rope_freqs.weight`.

    Raises UsageError for what is not supported.
    """
    family = metadata.get("general.architecture")
    if family not in ARCHITECTURES:
        raise UsageError(f"the GGUF architecture is {family!r:.60}; supported: {', '.join(ARCHITECTURES)}")
    prefix = f"{family}."
    f = Fields({key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)})
    if f.values.get("expert_count"):
        raise UsageError("it is a mixture of experts, which is not supported")
    heads, width = f.whole("attention.head_count", None, "heads"), f.whole("embedding_length", None, "width")
    layers, gpt2 = f.whole("block_count", None, "layers"), family == "gpt2"
    head_dim = f.whole("attention.key_length", width // heads, "head_dim")
    eps = f.number("attention.layer_norm_epsilon" if gpt2 else "attention.layer_norm_rms_epsilon", 1e-5)
    window = f.values.get("attention.sliding_window") and f.whole("attention.sliding_window", None, "context")
    return Config(
        vocab=tensors.get("token_embd.weight", (0,))[0], context=f.whole("context_length", None, "context"),
        layers=layers, heads=heads, width=width, kv_heads=f.whole("attention.head_count_kv", heads, "kv_heads"),
        head_dim=head_dim, hidden=f.whole("feed_forward_length", None, "hidden"),
        rope=None if gpt2 else _rope(f, head_dim, divisors), norm="layer" if gpt2 else "rms", eps=eps,
        activation="gelu_tanh" if gpt2 else "silu", gated=not gpt2, qkv_bias="blk.0.attn_q.bias" in tensors or gpt2,
        out_bias="blk.0.attn_output.bias" in tensors, mlp_bias="blk.0.ffn_down.bias" in tensors,
        qk_norm=family == "qwen3", windows=(window,) * layers if window else (), tied="output.weight" not in tensors,
    )  # fmt: skip


def _rope(f: Fields, head_dim: int, divisors: Sequence[float]) -> Rope:
    if f.values.get("rope.dimension_count", head_dim) != head_dim:
        raise UsageError("it has partial RoPE (`rope.dimension_count`), which is not supported")
    kind, theta = f.values.get("rope.scaling.type", "none"), f.number("rope.freq_base", 10_000.0)
    if divisors:
        if len(divisors) != head_dim // 2 or not all(0 < each < 1e12 for each in divisors):
            raise UsageError(f"`rope_freqs.weight` must have {head_dim // 2} numbers above 0")
        return Rope(theta, "divisors", divisors=tuple(divisors))
    if kind == "linear":
        return Rope(theta, "linear", f.number("rope.scaling.factor", 1.0))
    if kind != "none":
        raise UsageError(f"the RoPE scaling is `{kind!s:.40}`; supported: none, linear and `rope_freqs`")
    return Rope(theta)


def plan_of(config: Config, family: str) -> dict[str, StoredParameter]:
    """Where each parameter is stored in a file of that architecture."""
    c, gpt2 = config, family == "gpt2"
    qkv = (c.heads * c.head_dim, c.kv_heads * c.head_dim, c.kv_heads * c.head_dim)
    pairs = (c.heads, c.kv_heads, 0) if family == "llama" else ()
    plan: dict[str, StoredParameter] = {}

    def add(ours: str, names: tuple[str, ...], rows: tuple[int, ...], bias: bool, pairs: tuple[int, ...] = ()) -> None:
        for kind in ("weight", "bias") if bias else ("weight",):
            plan[f"{ours}.{kind}"] = StoredParameter(tuple(f"{name}.{kind}" for name in names), rows, pairs=pairs)

    for i in range(c.layers):
        ours, at = f"blocks.{i}.", f"blk.{i}."
        add(ours + "norm_1", (at + "attn_norm",), (c.width,), gpt2)
        if gpt2:
            add(ours + "qkv", (at + "attn_qkv",), (sum(qkv),), True)
        else:
            add(ours + "qkv", tuple(f"{at}attn_{each}" for each in "qkv"), qkv, c.qkv_bias, pairs)
        add(ours + "out", (at + "attn_output",), (c.width,), c.out_bias)
        add(ours + "norm_2", (at + "ffn_norm",), (c.width,), gpt2)
        ups = (at + "ffn_gate", at + "ffn_up") if c.gated else (at + "ffn_up",)
        add(ours + "up", ups, (c.hidden,) * len(ups), c.mlp_bias)
        add(ours + "down", (at + "ffn_down",), (c.width,), c.mlp_bias)
        for each in ("q", "k") if c.qk_norm else ():
            add(f"{ours}{each}_norm", (f"{at}attn_{each}_norm",), (c.head_dim,), False)
    add("embed", ("token_embd",), (c.vocab,), False)
    add("norm", ("output_norm",), (c.width,), gpt2)
    if gpt2:
        add("places", ("position_embd",), (c.context,), False)
    if not c.tied:
        add("head", ("output",), (c.vocab,), False)
    return plan


def tokens_of(metadata: Mapping[str, Any]) -> Tokens:
    """The tokenizer in the file. Raises UsageError if there is none, or an unsupported one."""
    kind, words, merges = (metadata.get(f"tokenizer.ggml.{each}") for each in ("model", "tokens", "merges"))
    pre = metadata.get("tokenizer.ggml.pre") or _default_cut(metadata)
    if kind != "gpt2" or pre not in _PRE_TOKENIZERS or not isinstance(words, list) or not isinstance(merges, list):
        known = ", ".join(_PRE_TOKENIZERS)
        raise UsageError(
            f"its tokenizer is {kind!r:.40}, pre-tokenizer {pre!r:.40}; supported: gpt2 (byte-level BPE) with {known}",
            hint="put the model's tokenizer.json into the file's folder; it is used instead",
        )
    tokenizer = _byte_level(words, merges, pre)
    special = {name: _special(metadata, name, len(words)) for name in ("bos", "eos", "eot", "eom")}
    first = special["bos"] if _around(metadata, "bos", special["bos"], usual=pre in _LLAMA3) else None
    _add_special(tokenizer, words, metadata, special)
    _surround(tokenizer, words, first, special["eos"] if _around(metadata, "eos", special["eos"]) else None)
    return with_metadata(Tokens(tokenizer, frozenset(), first=first), metadata)


def with_metadata(tokens: Tokens, metadata: Mapping[str, Any]) -> Tokens:
    """A tokenizer with the end tokens, named tokens and chat template of the file's metadata.

    Values that `tokens` already has take precedence. Raises UsageError for a special token that does not exist.
    """
    vocab, count = tokens.tokenizer.get_vocab(with_added_tokens=True), tokens.size
    special = {name: _special(metadata, name, count) for name in ("bos", "eos", "eot", "eom")}
    ends = {vocab[word] for word in TURN_ENDS & vocab.keys()}
    ends |= {number for name in ("eos", "eot", "eom") if (number := special[name]) is not None}
    texts = {
        f"{name}_token": str(tokens.tokenizer.id_to_token(number))
        for name in ("bos", "eos") if (number := special[name]) is not None
    }  # fmt: skip
    template = metadata.get("tokenizer.chat_template")
    return replace(
        tokens, ends=tokens.ends | ends,
        chat_template=tokens.chat_template or (template if isinstance(template, str) else None),
        specials={**texts, **tokens.specials},
    )  # fmt: skip


def _default_cut(metadata: Mapping[str, Any]) -> str | None:
    """The pre-tokenizer of an early file that does not name it; None if it is unknown."""
    family = metadata.get("general.architecture")
    if family == "llama" and "<|begin_of_text|>" in (metadata.get("tokenizer.ggml.tokens") or []):
        return "llama-bpe"
    return {"gpt2": "gpt-2", "qwen2": "qwen2", "qwen3": "qwen2"}.get(str(family))


def _special(metadata: Mapping[str, Any], name: str, count: int) -> int | None:
    """The id of a special token. Raises UsageError for an id beyond the `count` tokens."""
    number = metadata.get(key := f"tokenizer.ggml.{name}_token_id")
    if number is not None and (not isinstance(number, int) or not 0 <= number < count):
        raise UsageError(f"`{key}` is {number!r:.40}; its tokenizer has the tokens 0 to {count - 1:,}")
    return number


def _around(metadata: Mapping[str, Any], name: str, number: int | None, *, usual: bool = False) -> bool:
    """Whether BOS or EOS is added to each text: as the file says, else `usual`. Raises UsageError."""
    added = Fields(metadata).flag(key := f"tokenizer.ggml.add_{name}_token", usual and number is not None)
    if added and number is None:
        raise UsageError(f"`{key}` is true, but `tokenizer.ggml.{name}_token_id` is missing")
    return added


def _byte_level(words: list[Any], merges: list[Any], pre: str) -> tokenizers.Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocab = {word: number for number, word in enumerate(words)}
    pairs = [(first, second) for first, _, second in (str(merge).partition(" ") for merge in merges)]
    if len(vocab) != len(words) or not all(second for _, second in pairs):
        raise UsageError("its tokenizer is damaged: a token occurs twice, or a merge is not a pair")
    try:
        tokenizer = Tokenizer(models.BPE(vocab, pairs, ignore_merges=pre in _LLAMA3))
    except Exception as error:  # the library raises a bare Exception
        raise UsageError(f"its tokenizer is damaged: {error}") from None
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=_PRE_TOKENIZERS[pre] in ("", "digits"))
    steps: list[Any] = [bytes_]
    if _PRE_TOKENIZERS[pre] == "digits":
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    elif _PRE_TOKENIZERS[pre]:
        steps.insert(0, pre_tokenizers.Split(Regex(_PRE_TOKENIZERS[pre]), "isolated"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _add_special(
    tokenizer: tokenizers.Tokenizer, words: list[str], metadata: Mapping[str, Any], special: Mapping[str, int | None]
) -> None:
    """Add special tokens to the tokenizer: those marked as control tokens, those with a role, and known end-of-turn
    tokens.
    """
    from tokenizers import AddedToken

    kinds = metadata.get("tokenizer.ggml.token_type") or []
    control = [word for word, kind in zip(words, kinds, strict=False) if kind == _CONTROL or word in TURN_ENDS]
    control += [words[number] for number in special.values() if number is not None]
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in control])
    user_defined = [word for word, kind in zip(words, kinds, strict=False) if kind == _USER_DEFINED]
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in user_defined])


def _surround(tokenizer: tokenizers.Tokenizer, words: list[str], first: int | None, last: int | None) -> None:
    """Make the tokenizer add BOS and EOS to every text."""
    from tokenizers import processors

    around = [words[number] for number in (first, last) if number is not None]
    if around:
        single = [*around[: first is not None], "$A", *around[first is not None :]]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[(word, words.index(word)) for word in dict.fromkeys(around)]
        )
