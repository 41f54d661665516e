"""Training texts of a decoder: text files, a byte-level BPE tokenizer, and a memory-mapped token file.

A text file may hold several documents, with `<|end|>` between them. Tokens are stored as uint16 or uint32 in one file,
so a corpus may be larger than memory. One row in 64 is held out for validation.

Try it: ``pytest tests/plugins/studio_gpt/test_train.py``
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from studio.errors import InputError
from studio.files import check_regular, open_regular
from studio_gpt.tokens import Tokens

if TYPE_CHECKING:
    import tokenizers

END = "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
# Each message is its role, its text and an end token; the answer begins after the last role.
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
BLOCK = 1 << 20  # characters per call of the tokenizer
HELD_OUT = 64  # one row in 64 is for validation


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> tokenizers.Tokenizer:
    """Train a byte-level BPE tokenizer of `vocabulary` tokens. The same texts give the same tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END, *ROLES], show_progress=False, min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    bpe.train_from_iterator((text.replace(END, "\n") for text in texts), trainer)
    return bpe


def as_tokens(tokenizer: tokenizers.Tokenizer) -> Tokens:
    """The tokenizer of `train_tokenizer` with its end token, chat template and special tokens."""
    return Tokens(tokenizer, frozenset(tokenizer.encode(END).ids), TEMPLATE, {"eos_token": END, "pad_token": END})


def save_tokenizer(tokens: Tokens, folder: Path, context: int) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json` and `generation_config.json` in the layout of transformers."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens.tokenizer.save(str(folder / "tokenizer.json"))
    values = {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context,
        "clean_up_tokenization_spaces": False, "chat_template": tokens.chat_template, **tokens.specials,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(values, indent=2) + "\n", "utf-8")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": sorted(tokens.ends)}, indent=2) + "\n")


def text_files(paths: Sequence[str]) -> list[Path]:
    """The given files, and the `.txt` files of the given folders, in order. Raises InputError if there are none."""
    files = []
    for each in map(Path, paths):
        found = sorted(each.rglob("*.txt")) if each.is_dir() else [each]
        if not found or not each.exists():
            raise InputError(
                "texts", f"`{each}` is not a text file or a folder of `.txt` files", hint="give UTF-8 text files"
            )
        for file in found:
            try:
                check_regular(file)
            except OSError as error:
                reason = error.strerror or error
                raise InputError("texts", f"`{file}` cannot be read: {reason}", hint="give UTF-8 text files") from None
        files += found
    return files


def blocks(files: Iterable[Path]) -> Iterator[str]:
    """The texts of files in blocks of about a million characters, cut at line ends, with `<|end|>` after each file.

    Raises InputError for a file that cannot be read or is not UTF-8. A byte order mark is not part of the text.
    """
    for path in files:
        try:
            with io.TextIOWrapper(open_regular(path), encoding="utf-8-sig") as file:
                while block := file.read(BLOCK):
                    yield block + file.readline()
        except OSError as error:
            reason = error.strerror or error
            raise InputError("texts", f"`{path}` cannot be read: {reason}", hint="give UTF-8 text files") from None
        except UnicodeDecodeError as error:
            raise InputError("texts", f"`{path}` is not UTF-8: {error.reason} at byte {error.start:,}",
                             hint="convert it, for instance with `iconv`") from None  # fmt: skip
        yield END


def encode(texts: Iterable[str], tokenizer: tokenizers.Tokenizer, path: Path) -> int:
    """Write the tokens of the texts to a file, as uint16 if the vocabulary allows; return their number."""
    from studio.files import make_folder, new_file

    make_folder(path.parent)
    count = 0
    with new_file(path) as file:
        for text in texts:
            ids = np.array(tokenizer.encode(text, add_special_tokens=False).ids, width(tokenizer.get_vocab_size()))
            file.write(ids.tobytes())
            count += len(ids)
    return count


def width(vocabulary: int) -> type[np.unsignedinteger[Any]]:
    """The dtype of a token file."""
    return np.uint16 if vocabulary <= 1 << 16 else np.uint32


class TokenFile:
    """Samples of a token file: rows of `context` tokens and the one after.

    Attributes:
        training, validation: row numbers of each split.
    """

    def __init__(self, path: Path, vocabulary: int, context: int) -> None:
        """Map the file. Raises InputError if it has fewer than two rows."""
        self.tokens, self.context = np.memmap(path, width(vocabulary), "r"), context
        count = (len(self.tokens) - 1) // context
        if count < 2:
            message = f"the texts have {len(self.tokens):,} tokens; a context of {context} needs {2 * context + 1:,}"
            raise InputError("texts", message, hint="give more text, or lower `--context`")
        self.validation = np.arange(0, count, HELD_OUT)
        self.training = np.setdiff1d(np.arange(count), self.validation)

    def rows(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """The rows (len(numbers), context + 1), int64."""
        size = self.context
        return np.stack([self.tokens[n * size : (n + 1) * size + 1] for n in numbers]).astype(np.int64)

    def drawn(self, sample: int) -> int:
        """The row number of the `sample`-th sample: every training row once per epoch, shuffled in each."""
        epoch, place = divmod(sample, len(self.training))
        return int(np.random.default_rng(epoch).permutation(self.training)[place])
