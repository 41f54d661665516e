"""Two small tokenizers of the kinds in use: byte-level BPE, and sentencepiece style with byte tokens."""

from __future__ import annotations

import json
from functools import cache

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TEXTS = [
    '{"name": "a red apple", "count": 12, "ripe": true}',
    "[1, 2.5, -3, null, false]",
    '"yes", "no", "zwölf", "苹果"',
]
EOS = 0


@cache
def byte_level() -> Tokenizer:
    """As GPT-2, Llama 3, Qwen and SmolLM2 have it."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    return made


@cache
def sentencepiece() -> Tokenizer:
    """As Llama 2 and the first Mistral have it."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    special = ["</s>", "<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    made.train_from_iterator(TEXTS, trainer)
    told = json.loads(made.to_str())
    told["added_tokens"] = told["added_tokens"][:3]  # a byte token is no special one
    return Tokenizer.from_str(json.dumps(told))


TOKENIZERS = {"byte_level": byte_level, "sentencepiece": sentencepiece}
