"""Resource limits for untrusted `tokenizer.json` files, against unbounded growth of texts and regular expressions.

The library `tokenizers` runs the replacements in the file, each of which may lengthen the text, and its regular
expressions, which may backtrack exponentially. So before building, the growth of all steps is multiplied, and regular
expressions are checked (regex.py).

Try it: ``load(Path("folder/tokenizer.json"))``
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.errors import WeightsError
from studio.loaders import MOST_TOKENIZER, MOST_WORDS, read_config
from studio.loaders.regex import fault

if TYPE_CHECKING:
    import tokenizers

MOST_WORD = 4096  # characters of a token
MOST_ADDED = 4096  # characters that a step may put before, after or between the text's own
MOST_GROWTH = 64  # times; a character of the known tokenizers becomes at most 18
MOST_STEPS = 64
MOST_PIECES = 64  # of a template
MOST_PADDING = 1 << 20  # tokens
MOST_UNSPLIT = 1000  # characters of a word that WordPiece looks at; its time is their cube
_PLAIN = {
    "normalizer": (
        "BertNormalizer", "ByteLevel", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Strip", "StripAccents",
    ),
    "pre_tokenizer": (
        "BertPreTokenizer", "ByteLevel", "CharDelimiterSplit", "Digits", "FixedLength", "Metaspace", "Punctuation",
        "UnicodeScripts", "Whitespace", "WhitespaceSplit",
    ),
    "decoder": ("BPEDecoder", "ByteFallback", "ByteLevel", "CTC", "Fuse", "Metaspace", "Strip", "WordPiece"),
    "post_processor": ("BertProcessing", "ByteLevel", "RobertaProcessing"),
}  # fmt: skip
"""Steps with a fixed growth, by component."""
_MEMBERS = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders",
            "post_processor": "processors"}  # fmt: skip
_BYTES = 4  # characters that ByteLevel makes of one


def load(path: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a file. Raises WeightsError for one that is damaged or out of bounds."""
    return build(read_config(path, MOST_TOKENIZER), path)


def build(content: dict[str, Any], path: Path) -> tokenizers.Tokenizer:
    """The tokenizer that `content`, read from `path`, describes. Raises WeightsError."""
    import tokenizers

    check(content, path)
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # the library raises a bare Exception
        message = f"`{path}` is not a tokenizer that the library `tokenizers` reads: {str(error)[:200]}"
        raise WeightsError(path, message, hint="download the model again, or save its tokenizer again") from None


def check(content: dict[str, Any], path: Path) -> None:
    """Raise WeightsError if building or using the tokenizer could need excessive time or memory."""
    try:
        for reason in _faults(content):
            raise WeightsError(path, f"`{path}` is rejected: {reason}", hint="download the tokenizer again")
    except (TypeError, ValueError, AttributeError, KeyError, RecursionError) as error:
        message = f"`{path}` is not a tokenizer: {type(error).__name__}: {str(error)[:100]}"
        raise WeightsError(path, message, hint="download the model again") from None


def check_words(words: Iterator[str] | list[str], path: Path) -> None:
    """Raise WeightsError for tokens that are too many or too long."""
    for reason in _words(words):
        raise WeightsError(path, f"the tokenizer of `{path}` is rejected: {reason}", hint="download the model again")


def _faults(content: dict[str, Any]) -> Iterator[str]:
    for place in _PLAIN:
        growth = 1.0
        steps = list(_steps(content.get(place), place))
        if len(steps) > MOST_STEPS:
            yield f"`{place}` has {len(steps)} steps; at most {MOST_STEPS} are allowed"
        for step in steps:
            kind = step.get("type")
            if kind not in _PLAIN[place] and kind not in _CHOSEN.get(place, ()):
                yield f"`{place}` has an unknown step {kind!r:.60}"
            yield from _patterns(step)
            growth *= _growth(step)
        if growth > MOST_GROWTH:
            yield f"`{place}` makes a text {growth:,.0f} times as long; at most {MOST_GROWTH} times is allowed"
    yield from _padding(content.get("padding"))
    yield from _model(content.get("model") or {})
    yield from _words(str(each["content"]) for each in content.get("added_tokens") or [])


_CHOSEN = {
    "normalizer": ("Replace", "Prepend", "Precompiled"), "pre_tokenizer": ("Split",), "decoder": ("Replace",),
    "post_processor": ("TemplateProcessing",),
}  # fmt: skip


def _steps(step: Any, place: str) -> Iterator[dict[str, Any]]:
    """The steps of a component, with sequences flattened."""
    if step is None:
        return
    if step.get("type") != "Sequence":
        yield step
        return
    for each in step[_MEMBERS[place]]:
        yield from _steps(each, place)


def _patterns(step: dict[str, Any]) -> Iterator[str]:
    pattern = step.get("pattern")
    if pattern is None:
        return
    if "Regex" in pattern:
        if reason := fault(pattern["Regex"]):
            yield f"its regular expression {pattern['Regex']!r:.60} {reason}"
    elif not 1 <= len(pattern["String"]) <= MOST_ADDED:
        yield f"a pattern has {len(pattern['String']):,} characters; 1 to {MOST_ADDED:,} are allowed"


def _growth(step: dict[str, Any]) -> float:
    """The growth factor of a step; text added once counts only beyond `MOST_ADDED`."""
    kind = step["type"]
    if kind == "Replace":
        shortest = len(step["pattern"]["String"]) if "String" in step["pattern"] else 1
        return max(1.0, len(step["content"]) / max(1, shortest))
    if kind == "Prepend":
        return max(1.0, len(step["prepend"]) / MOST_ADDED * MOST_GROWTH)
    if kind == "Precompiled":
        return float(_longest(step.get("precompiled_charsmap") or ""))
    if kind == "ByteLevel":
        return 2.0 if step.get("add_prefix_space") is None else _BYTES
    if kind == "TemplateProcessing":
        return _template(step)
    texts = [value for key, value in step.items() if isinstance(value, str) and key != "type"]
    return max([1.0, *(len(each) for each in texts if len(each) > MOST_PIECES)])


def _template(step: dict[str, Any]) -> float:
    """The number of times that a template repeats a text."""
    pieces = [step.get("single") or [], step.get("pair") or []]
    ids = [each["ids"] for each in (step.get("special_tokens") or {}).values()]
    if max(map(len, [*pieces, *ids])) > MOST_PIECES:
        return float("inf")
    return float(max(1, *(sum("Sequence" in piece for piece in part) for part in pieces)) - bool(pieces[1]) or 1)


def _longest(charsmap: str) -> int:
    """The longest replacement in a sentencepiece character map: a trie, then replacements separated by zeros."""
    try:
        data = base64.b64decode(charsmap)
    except binascii.Error:
        return MOST_GROWTH + 1
    trie = int.from_bytes(data[:4], "little")
    return max(map(len, data[4 + trie :].split(b"\0")), default=1) or 1


def _padding(padding: Any) -> Iterator[str]:
    if padding is None:
        return
    strategy = padding.get("strategy")
    fixed = strategy.get("Fixed", 0) if isinstance(strategy, dict) else 0
    if max(fixed, padding.get("pad_to_multiple_of") or 0) > MOST_PADDING:
        yield f"it pads every text to {fixed or padding['pad_to_multiple_of']:,} tokens; {MOST_PADDING:,} is the most"


def _model(model: dict[str, Any]) -> Iterator[str]:
    vocabulary = model.get("vocab") or {}
    words = vocabulary if isinstance(vocabulary, dict) else (each[0] for each in vocabulary)
    yield from _words(iter(words))
    if len(model.get("merges") or []) > MOST_WORDS:
        yield f"it has {len(model['merges']):,} merges; {MOST_WORDS:,} is the most"
    if (model.get("max_input_chars_per_word") or 0) > MOST_UNSPLIT:
        yield f"`max_input_chars_per_word` is {model['max_input_chars_per_word']:,}; {MOST_UNSPLIT:,} is the most"
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "unk_token"):
        if len(model.get(key) or "") > MOST_PIECES:
            yield f"`{key}` has {len(model[key]):,} characters; {MOST_PIECES} is the most"


def _words(words: Iterator[str] | list[str]) -> Iterator[str]:
    for count, word in enumerate(words, 1):
        if len(word) > MOST_WORD:
            yield f"a token has {len(word):,} characters; {MOST_WORD:,} is the most"
        if count > MOST_WORDS:
            yield f"it has more than {MOST_WORDS:,} tokens"
            return
