"""Does CLIP find a held-out picture by text among 500, of which 225 were held out from training?

Rows: the English label; the label and its first two tags; labels other than playing cards, which are all called
"card", and flags; other words for the object that are in no training caption; the Chinese label. Only the exact
picture among the first k is a hit, so of 33 pictures called "card" at most five can be found.

The other words are WordNet's synonyms of a held-out picture's label (also of the last word of a title) and an emoji's
tags, except those that occur, as whole words, in the name of any training picture.

    python benchmarks/retrieval.py --data training/data
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from studio.devices import torch_setup

torch_setup.prepare()

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `recipes`, which is not installed

from recipes.data import build  # noqa: E402
from recipes.data.wordnet import WordNet  # noqa: E402
from recipes.text import captions, wordings  # noqa: E402  (needs prepare)
from studio_clip import folders  # noqa: E402
from studio_clip import model as clip  # noqa: E402

CANDIDATES, DRAWS = 500, 2000
Query = tuple[int, str]
"""The place of the picture that is meant among the candidates, and the words."""


def plain(text: str) -> str:
    """A text's words in lower case, each between spaces: so that a phrase is found in a text as whole words."""
    return " " + " ".join(re.findall(r"[^\W_]+", text.lower())) + " "


def synonyms(records: Sequence[dict[str, Any]], net: WordNet, trained: Sequence[dict[str, Any]]) -> list[Query]:
    """For each record each other word for it that no caption of a trained picture says; in a fixed order."""
    said = "|".join(plain(text) for record in trained for kind in captions.phrases(record).values() for text in kind)
    found: list[Query] = []
    for place, record in enumerate(records):
        label, others = record["label"], [*record["synonyms"]]
        if record["source"] == "emoji":
            others += record["tags"]
        elif synset := net.drawable(label.split()[-1]):
            others += synset.words  # a title's last word is the thing: "red hurricane lamp"
        found += [
            (place, text) for text in dict.fromkeys(others) if not text[0].isupper() and plain(text) not in plain(label)
        ]
    return [(place, text) for place, text in found if plain(text) not in said]


def ranks(images: Tensor, texts: Tensor, places: Sequence[int]) -> np.ndarray:
    """For each text the number of candidates that are nearer to it than the picture that is meant."""
    scores = texts @ images.T  # (Q, 500)
    own = scores[torch.arange(len(places)), torch.tensor(places)]
    return (scores > own[:, None]).sum(1).numpy()


def interval(hits: np.ndarray, places: Sequence[int]) -> tuple[float, float]:
    """95% interval of a recall, by bootstrap over pictures: the queries of one picture are drawn together."""
    rng, groups = np.random.default_rng(0), np.unique(np.array(places), return_inverse=True)[1]
    count, sums = np.bincount(groups), np.bincount(groups, hits)
    drawn = rng.integers(0, len(count), (DRAWS, len(count)))
    low, high = np.percentile(sums[drawn].sum(1) / count[drawn].sum(1), [2.5, 97.5])
    return float(low), float(high)


def rows(records: Sequence[dict[str, Any]], net: WordNet, trained: Sequence[dict[str, Any]]) -> dict[str, list[Query]]:
    """What is asked, by the name of the row; `records` are the held-out ones."""
    labels = [(place, record["label"]) for place, record in enumerate(records)]
    return {
        "English label": labels,
        "label and two tags": [(place, ", ".join([text, *records[place]["tags"][:2]])) for place, text in labels],
        "label, without `card` and flags": [
            (place, text) for place, text in labels if text != "card" and records[place]["group"] != "flags"
        ],
        "synonym never in a caption": synonyms(records, net, trained),
        "Chinese label": [(place, record["zh_label"]) for place, record in enumerate(records) if record["zh_label"]],
    }


def main() -> None:
    """Embed held-out pictures, others to fill up, and the words; print a table of recall."""
    parser = argparse.ArgumentParser(description="Measure text-to-image retrieval on held-out pictures.")
    parser.add_argument("--data", type=Path, required=True, help="data set of `python -m recipes.data`")
    parser.add_argument("--cache", type=Path, help="fetched packages (default: `cache` beside the data set)")
    parser.add_argument(
        "--wordings", type=Path, help="of `python -m recipes.text` (default: `text/wordings.json` beside it)"
    )
    parser.add_argument("--model", type=Path, default=folders.WEIGHTS, help="CLIP's folder (default: what ships)")
    parser.add_argument("--starter", type=Path, help="where its text tower is (default: the image model that ships)")
    given = parser.parse_args()
    pictures, records = build.load(given.data)
    said = wordings.load(given.wordings or given.data.parent / "text" / "wordings.json")
    records = wordings.join(records, said)
    net = build.wordnet(given.cache or given.data.parent / "cache")
    held = [index for index, record in enumerate(records) if record["split"] == "test"]
    rest = [index for index, record in enumerate(records) if record["split"] == "train"]
    more = np.random.default_rng(0).choice(rest, CANDIDATES - len(held), replace=False).tolist()
    chosen, loaded = [*held, *more], clip.load(given.model, given.starter)
    images = torch.cat(
        [loaded.encode_pixels(pictures[chosen[start : start + 64]]) for start in range(0, len(chosen), 64)]
    )
    print(f"{len(held)} held-out pictures among {len(chosen)}; chance: {1 / len(chosen):.1%}, {5 / len(chosen):.1%}\n")
    print("| text | queries | recall@1 | recall@5 (95% interval) | recall@10 |\n|---|---|---|---|---|")
    asked = rows([records[i] for i in held], net, [records[i] for i in rest])
    for name, queries in asked.items():
        meant = [place for place, _ in queries]
        rank = ranks(images, loaded.encode_text([text for _, text in queries]), meant)
        one, five, ten = ((rank < k).astype(float) for k in (1, 5, 10))
        low, high = interval(five, meant)
        figures = f"{one.mean():.1%} | {five.mean():.1%} ({low:.0%} to {high:.0%}) | {ten.mean():.1%}"
        print(f"| {name} | {len(queries)} | {figures} |")


if __name__ == "__main__":
    main()
