"""Does a text model turn an idea into a prompt of the thing that is meant?

Ideas are the held-out descriptions of `studio train gpt` and `gpt-chat`: one in ten of what is said of each emoji of a
thing, which the model has never seen (the thing's other descriptions it has). Each is answered greedily, in the model's
chat template. Two figures: how many prompts begin with the thing's very name, and for how many the CLIP text tower,
which the image model is led by, finds that name nearest among all of them. The second is given for the ideas as they
are too; it flatters them, as that tower was trained on these very descriptions.

    python benchmarks/expand.py --data training/data
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

import studio
from studio import torch_setup

torch_setup.prepare()

from studio_clip import model as clip  # noqa: E402  (needs prepare)
from studio_datasets import build  # noqa: E402
from studio_gpt import corpus  # noqa: E402
from studio_gpt.text import STARTER, TextGenerator  # noqa: E402

BATCH, MOST, SAMPLES = 32, 48, 12


def expand(path: Path, ideas: Sequence[str]) -> list[str]:
    """What the model at `path` answers, greedily, in at most 48 tokens."""
    generator = TextGenerator(path)
    loaded = generator.load("cpu", "float32")
    made = []
    for start in range(0, len(ideas), BATCH):
        values = [
            {"prompt": idea, "chat": True, "temperature": 0, "max_tokens": MOST}
            for idea in ideas[start : start + BATCH]
        ]
        states = [generator.start(loaded, generator.Inputs.parse(each), studio.Rng(0)) for each in values]
        while any(not state.done for state in states):
            moved = iter(generator.step(loaded, [state for state in states if not state.done]))
            states = [state if state.done else next(moved) for state in states]
        made += [state.text for state in states]
    return made


def nearest(tower: clip.Clip, texts: Sequence[str], names: Sequence[str]) -> list[str]:
    """For each text the name whose embedding is nearest to its own."""
    embedded = [tower.texts(texts[start : start + 256]) for start in range(0, len(texts), 256)]
    return [names[place] for place in (torch.cat(embedded) @ tower.texts(names).T).argmax(1).tolist()]


def main() -> None:
    """Expand the held-out ideas; print both figures, and samples."""
    parser = argparse.ArgumentParser(description="Measure how ideas become picture prompts.")
    parser.add_argument("--data", type=Path, required=True, help="data set of `studio train data`")
    parser.add_argument("--model", type=Path, default=STARTER, help="the text model (default: what ships)")
    parser.add_argument("--ideas", type=int, default=1_000_000, help="measure so many only, evenly spread")
    given = parser.parse_args()
    records = [record for record in build.load(given.data)[1] if record["descriptions"]]
    asked = [(text, record["label"]) for record in records for text in record["descriptions"] if corpus.held_out(text)]
    asked = asked[:: max(1, len(asked) // given.ideas)]
    ideas, meant = [text for text, _ in asked], [label for _, label in asked]
    names = sorted({record["label"] for record in records})
    prompts, tower = expand(given.model, ideas), clip.load()
    named = [prompt.split(",")[0] == label for prompt, label in zip(prompts, meant, strict=True)]
    print(f"{len(ideas)} held-out ideas, {len(names)} names; chance {1 / len(names):.2%}")
    print(f"the prompt begins with the name: {sum(named) / len(named):.1%}")
    for kind, texts in (("prompt", prompts), ("idea itself", ideas)):
        hits = [found == label for found, label in zip(nearest(tower, texts, names), meant, strict=True)]
        print(f"the text tower finds the name nearest to the {kind}: {sum(hits) / len(hits):.1%}")
    for place in range(0, len(asked), max(1, len(asked) // SAMPLES)):
        print(f"  {meant[place]}: {ideas[place]} -> {prompts[place]}")


if __name__ == "__main__":
    main()
