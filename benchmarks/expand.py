"""Does the text model expand an idea into a prompt for the right object, and is the picture better for it?

There are four kinds of ideas. `held-out`: one in ten descriptions of each object, which were held out from the
language model's training (its other descriptions were not, and the text tower was trained on all). `chinese`:
held-out Chinese descriptions, on which the text tower was not trained either. `paraphrase`: those of
docs/recognition.md, which are in no training data. `name`: the names of objects, which should not change. Each is
answered greedily, in the form of `corpus.TEMPLATE`. Three numbers per kind: how many prompts begin with exactly the
object's name, and for how many the CLIP text tower, which conditions the image model, finds that name nearest among
all names, to the prompt and to the unchanged idea.

With `--pictures N`, pictures of N ideas of the first two kinds are generated, unchanged and expanded, with the same
seed, and the encoder of docs/recognition.md ranks the labels of both pictures.

    python benchmarks/expand.py --data training/data
    python benchmarks/expand.py --data training/data --cache training/cache --pictures 50
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import studio
from studio.devices import torch_setup

torch_setup.prepare()

import recognition  # noqa: E402  (needs prepare)

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `recipes`, which is not installed

from recipes.data import build  # noqa: E402
from recipes.gpt import ideas  # noqa: E402
from studio_clip import model as clip  # noqa: E402
from studio_gpt import corpus  # noqa: E402
from studio_gpt.text import STARTER, TextGenerator  # noqa: E402

BATCH, MOST, SAMPLES = 128, 48, 12
FORM = f"{corpus.ROLES[1]}{{}}{corpus.END}{corpus.ROLES[2]}"  # what the template writes, without its process
Asked = list[tuple[str, str]]  # ideas, and the name of what is meant


def expand(path: Path, asked: Sequence[str]) -> list[str]:
    """What the model at `path` answers, greedily, in at most 48 tokens."""
    generator = TextGenerator(path)
    loaded = generator.load(studio.ModelRef(), "cpu", "float32")
    made = []
    for start in range(0, len(asked), BATCH):
        values = [
            {"prompt": FORM.format(idea), "temperature": 0, "max_tokens": MOST} for idea in asked[start : start + BATCH]
        ]
        states = [generator.start_isolated(loaded, generator.Inputs.parse(each), studio.Rng(0)) for each in values]
        while any(not state.done for state in states):
            moved = iter(generator.step(loaded, [state for state in states if not state.done]))
            states = [state if state.done else next(moved) for state in states]
        made += [state.text for state in states]
    return made


def nearest(tower: clip.ClipModel, texts: Sequence[str], names: Sequence[str]) -> list[str]:
    """For each text the name whose embedding is nearest to its own."""
    embedded = [tower.encode_text(texts[start : start + 256]) for start in range(0, len(texts), 256)]
    return [names[place] for place in (torch.cat(embedded) @ tower.encode_text(names).T).argmax(1).tolist()]


def kinds(records: Sequence[dict[str, Any]]) -> dict[str, Asked]:
    """The ideas of each kind."""
    told = [record for record in records if record["split"] == "train" and ideas.looks(record)]
    rows = json.loads(recognition.PROMPTS.read_text("utf-8"))
    return {
        "held-out": [(idea, prompt.split(",")[0]) for idea, prompt in ideas.held_out_pairs(records)],
        "chinese": [(idea, prompt.split(",")[0]) for idea, prompt in ideas.held_out_chinese_pairs(records)],
        "paraphrase": [(row["paraphrase"], row["label"]) for row in rows],
        "name": [(record["label"], record["label"]) for record in told],
    }


def words(model: Path, asked: Asked, names: Sequence[str], tower: clip.ClipModel) -> None:
    """Print the figures of one kind of ideas, and samples."""
    texts, meant = [idea for idea, _ in asked], [name for _, name in asked]
    prompts = expand(model, texts)
    named = [prompt.split(",")[0] == name for prompt, name in zip(prompts, meant, strict=True)]
    print(f"  the prompt begins with the name: {sum(named) / len(named):.1%}")
    for kind, each in (("prompt", prompts), ("idea itself", texts)):
        hits = [found == name for found, name in zip(nearest(tower, each, names), meant, strict=True)]
        print(f"  the text tower finds the name nearest to the {kind}: {sum(hits) / len(hits):.1%}")
    for place in range(0, len(asked), max(1, len(asked) // SAMPLES)):
        print(f"    {meant[place]}: {texts[place]} -> {prompts[place]}")


class References:
    """What the judge compares pictures with: all pictures of the training split."""

    def __init__(self, data: Path, cache: Path) -> None:
        shown, records = build.load(data)
        keep = [i for i, record in enumerate(records) if record["split"] == "train"]
        self.labels, self.eye = [records[i]["label"].lower() for i in keep], recognition.Judge(cache)
        self.features = self.eye.features(shown[keep])

    def ranks(self, pictures: np.ndarray, meant: list[str]) -> list[int]:
        """For each picture the rank of what it is meant to show."""
        return recognition.ranks(self.eye.features(pictures), self.features, self.labels, meant)


def pictures(model: Path, asked: Asked, references: References) -> None:
    """Draw ideas as they are and expanded; print how many are recognised among the first and the first five."""
    texts, meant = [idea for idea, _ in asked], [name.lower() for _, name in asked]
    with studio.Studio() as host:
        for kind, prompts in (("ideas as they are", texts), ("expanded ideas", expand(model, texts))):
            tickets = [host.submit("image", seed=seed, prompt=prompt) for seed, prompt in enumerate(prompts)]
            made = np.stack([np.asarray(ticket.result().pil) for ticket in tickets])
            found = references.ranks(made, meant)
            first, five = (sum(rank <= k for rank in found) for k in (1, 5))
            low, high = recognition.interval(five, len(found))
            print(f"  {kind}: top-1 {first}, top-5 {five} of {len(found)} ({low:.0f}% to {high:.0f}%)")


def main() -> None:
    """Expand every kind of ideas, or draw some of them."""
    parser = argparse.ArgumentParser(description="Measure how ideas become picture prompts.")
    parser.add_argument("--data", type=Path, required=True, help="data set of `python -m recipes.data`")
    parser.add_argument("--cache", type=Path, help="cache of `python -m recipes.data`, for the judge of pictures")
    parser.add_argument("--model", type=Path, default=STARTER, help="the text model (default: what ships)")
    parser.add_argument("--ideas", type=int, default=1_000_000, help="ask so many of a kind only, evenly spread")
    parser.add_argument("--pictures", type=int, default=0, help="draw so many of a kind")
    given = parser.parse_args()
    if given.pictures and not given.cache:
        parser.error("--pictures needs --cache: the judge's weights are there")
    records = build.load(given.data)[1]
    names, tower = sorted({record["label"] for record in records if record["descriptions"]}), clip.load()
    references = References(given.data, given.cache) if given.pictures else None
    print(f"{len(names)} names; chance {1 / len(names):.2%}")
    for kind, asked in kinds(records).items():
        asked = asked[:: max(1, len(asked) // (given.pictures or given.ideas))][: given.pictures or None]
        print(f"{kind}: {len(asked)} ideas")
        if references is None:
            words(given.model, asked, names, tower)
        elif kind != "name":
            pictures(given.model, asked, references)


if __name__ == "__main__":
    main()
