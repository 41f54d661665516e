"""The words of a prompt that are not in a model's training captions, and the nearest thing that is.

A model's folder may have a `vocabulary.json`: `things` (names of what it draws), `words` (other English words) and
`chinese` (Chinese words) of its training captions; without one nothing is checked. Colours, numbers, places and
function words never count as unknown. Loads no torch.

Try it: `Vocabulary(("dog",), ("running",), ("狗",)).unknown("a griffin and two dogs")` is `("griffin",)`
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from studio.caching import cached_property
from studio.errors import WeightsError
from studio.loaders import read_config

FILE = "vocabulary.json"
MOST = 5
"""The most unknown words named in a notice; the rest are counted."""

_PLAIN = [
    word
    for line in Path(__file__).with_name("plain_words.txt").read_text("utf-8").splitlines()
    if not line.startswith("#")
    for word in line.split()
]
PLAIN = frozenset(word for word in _PLAIN if word.isascii())
PLAIN_CHINESE = frozenset(word for word in _PLAIN if not word.isascii())
"""Words that never count as unknown: function words, colours, numbers, places, sizes, and words for pictures."""

_WORD = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*")
_CHINESE = re.compile(r"[\u3400-\u9fff]+")


@dataclass(frozen=True)
class Vocabulary:
    """The words of a model's training captions.

    Attributes:
        things: English names of what it draws, in lower case; they may be of several words.
        words: other English words.
        chinese: Chinese words.
    """

    things: tuple[str, ...]
    words: tuple[str, ...]
    chinese: tuple[str, ...]

    @cached_property
    def _english(self) -> frozenset[str]:
        parts = {part for name in self.things for part in _WORD.findall(name.lower())}
        return PLAIN | frozenset(self.words) | parts | {name.lower() for name in self.things}

    @cached_property
    def _han(self) -> frozenset[str]:
        return PLAIN_CHINESE | frozenset(self.chinese)

    def unknown(self, text: str) -> tuple[str, ...]:
        """The words of a text that no caption has, each once, in order. Words with a digit are skipped."""
        found = []
        for match in re.finditer(rf"{_CHINESE.pattern}|{_WORD.pattern}", text):
            piece = match[0]
            for part in re.split(f"({_CHINESE.pattern})", piece):
                if _CHINESE.fullmatch(part):
                    found += self._unknown_chinese(part)
                elif part and not re.search(r"\d", part) and not self._knows(part.lower()):
                    found.append(part.lower())
        return tuple(dict.fromkeys(found))

    def _knows(self, word: str) -> bool:
        """Whether the word, its singular or each part of a compound is known."""
        forms = {word, word.removesuffix("'s"), word.removesuffix("’s")}
        forms |= {form.removesuffix("s") for form in forms} | {form.removesuffix("es") for form in forms}
        forms |= {form.removesuffix("ies") + "y" for form in forms if form.endswith("ies")}
        forms |= {form.removesuffix("ves") + end for form in forms if form.endswith("ves") for end in ("f", "fe")}
        forms |= {form.removesuffix("men") + "man" for form in forms if form.endswith("men")}
        if forms & self._english:
            return True
        parts = re.split(r"[-'’]", word)
        return len(parts) > 1 and all(self._knows(part) for part in parts if len(part) > 1)

    def _unknown_chinese(self, run: str) -> list[str]:
        """The rest of a run of characters without its known words, matched greedily, longest first."""
        longest = max(map(len, self._han))
        made: list[str] = []
        rest, at = "", 0
        while at < len(run):
            size = next((n for n in range(min(longest, len(run) - at), 0, -1) if run[at : at + n] in self._han), 0)
            if size:
                made, rest = ([*made, rest] if rest else made), ""
            else:
                rest += run[at]
            at += size or 1
        return [*made, rest] if rest else made


def load(folder: Path) -> Vocabulary | None:
    """The vocabulary of a model's folder, or None if it has none. Raises WeightsError for a damaged file."""
    path = folder / FILE
    if not path.exists():
        return None
    content = read_config(path)
    try:
        lists = [content[name] for name in ("things", "words", "chinese")]
    except KeyError as error:
        raise WeightsError(
            path, f"`{path}` is not a vocabulary: it has no {error}", hint="install the package again"
        ) from None
    if not all(isinstance(each, list) and all(isinstance(word, str) and word for word in each) for each in lists):
        reason = f"`{path}` is not a vocabulary: its lists must have words only"
        raise WeightsError(path, reason, hint="install the package again")
    return Vocabulary(*map(tuple, lists))


def notices(vocabulary: Vocabulary | None, text: str, nearest: Callable[[str], str]) -> tuple[str, ...]:
    """The notice for a prompt: the words that are not in the training captions, with the nearest thing to each.

    Args:
        text: the prompt's words, without its weights and tags (`prompts.read(prompt).text`).
        nearest: finds the nearest thing of the vocabulary to a word; called if none has a similar spelling.
    """
    words = vocabulary.unknown(text) if vocabulary else ()
    if vocabulary is None or not words:
        return ()
    named = [f"“{word}” (nearest: {alike(word, vocabulary.things) or nearest(word)})" for word in words[:MOST]]
    more = f", and {len(words) - MOST} more" if len(words) > MOST else ""
    return (f"not in the model's training captions: {', '.join(named)}{more}",)


def alike(word: str, things: Sequence[str]) -> str:
    """The thing with a similar spelling, if there is one: `elefant` gives `elephant`."""
    near = get_close_matches(word, things, n=1, cutoff=0.8) if word.isascii() and len(word) > 3 else []
    return near[0] if near else ""
