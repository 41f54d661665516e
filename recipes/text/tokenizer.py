"""Train a byte-level BPE in CLIP's own form (lower case, `</w>` ends a word), saved as transformers' `CLIPTokenizer`.

Chinese has no spaces, so a phrase is one word to the pattern and its common parts become merges. Every byte has a token
with and without `</w>`, so no text is unknown.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from recipes.data.wordnet import WordNet

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def texts(records: list[dict[str, Any]], wordnet: WordNet) -> Iterator[str]:
    """Training texts: captions, the few Chinese ones repeated, and WordNet's nouns and definitions."""
    for record in records:
        yield from [record["label"], *record["tags"]] * 3
        yield from [record["zh_label"], *record["zh_tags"]] * 8
    for synset in wordnet.synsets.values():
        yield from (synset.gloss, *synset.words)


def train(texts: Iterable[str], folder: Path, vocabulary: int = 16384, context: int = 48) -> None:
    """Learn merges from `texts` and write `vocab.json`, `merges.txt` and `tokenizer_config.json` into `folder`.

    The two special tokens take the highest ids, END the last: open_clip finds a text's end by the largest id. The same
    texts give the same bytes.
    """
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    bpe.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), "removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ends = [f"{letter}</w>" for letter in alphabet]
    base = [*alphabet, *ends]
    # Named as special, the ends have ids in a fixed order: met in the texts, they would have them in the order of a
    # randomly seeded hash table, by which the trainer decides between pairs that are equally frequent.
    trainer = trainers.BpeTrainer(vocab_size=vocabulary - 2, initial_alphabet=alphabet, special_tokens=ends,
                                  end_of_word_suffix="</w>", show_progress=False, min_frequency=2)  # fmt: skip
    bpe.train_from_iterator(texts, trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]][: vocabulary - 2 - len(base)]
    tokens = list(dict.fromkeys([*base, *("".join(pair) for pair in merges)]))
    ids = {token: index for index, token in enumerate([*tokens, BEGIN, END])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n", "utf-8")
    config = {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": context, "add_prefix_space": False,
        "do_lower_case": True,
        "bos_token": BEGIN, "eos_token": END, "unk_token": END, "pad_token": END,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
