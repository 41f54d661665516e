"""WordNet 3.0's nouns: lemmas, glosses and lexical files, read from its database text (format: wndb(5WN))."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

LEXNAMES = {5: "animal", 6: "artifact", 8: "body", 13: "food", 17: "object", 18: "person", 19: "phenomenon",
            20: "plant", 25: "shape", 27: "substance"}  # fmt: skip
"""Numbers of the lexical files that hold things one can draw (lexnames(5WN))."""


@dataclass(frozen=True)
class Synset:
    """A synset: its words, its definition without examples, and the number of its lexical file."""

    words: tuple[str, ...]
    gloss: str
    lexname: int


class WordNet:
    """The noun database, in memory: `synsets` by offset, `senses` from a word to its offsets in order of frequency.

    `counts` has the frequency of words in the tagged texts with a meaning that can be drawn (cntlist(5WN)).
    """

    def __init__(self, folder: Path) -> None:
        """Read `data.noun`, `index.noun` and `cntlist.rev` of a WordNet folder."""
        self.synsets: dict[int, Synset] = {}
        self.senses: dict[str, list[int]] = {}
        self.counts: Counter[str] = Counter()
        for line in (folder / "data.noun").read_text("utf-8").splitlines():
            if not line.startswith(" "):
                head, _, gloss = line.partition(" | ")
                fields = head.split()
                words = tuple(fields[4 + 2 * i].replace("_", " ") for i in range(int(fields[3], 16)))
                self.synsets[int(fields[0])] = Synset(
                    words, gloss.split(';  "')[0].split('; "')[0].strip(), int(fields[1])
                )
        for line in (folder / "index.noun").read_text("utf-8").splitlines():
            if not line.startswith(" "):
                fields = line.split()
                self.senses[fields[0].replace("_", " ")] = [int(field) for field in fields[-int(fields[2]) :]]

        for line in (folder / "cntlist.rev").read_text("utf-8").splitlines():
            word, _, sense = line.split()[0].partition("%")
            kind, lexname = sense.split(":")[:2]
            if kind == "1" and int(lexname) in LEXNAMES:
                self.counts[word.replace("_", " ")] += int(line.split()[2])

    def drawable(self, word: str, prefer: tuple[int, ...] = ()) -> Synset | None:
        """The most frequent meaning of `word` that can be drawn, those of the lexical files in `prefer` first."""
        senses = [self.synsets[offset] for offset in self.senses.get(word.lower(), ())]
        for allowed in (prefer, tuple(LEXNAMES)):
            for synset in senses:
                if synset.lexname in allowed:
                    return synset
        return None
