"""How well does `studio search` find pictures that Studio generated, with and without their recipes?

The pictures are the published ones of 64 nouns (docs/recognition/), generated from the English label, the Chinese
label and a paraphrase of each. Queries have another wording than the pictures' prompts, so no query equals a prompt.
The rule (the mean of both cosines) was chosen on the nouns with even indices; the table is for the odd ones.

    python benchmarks/search.py
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import PIL.Image

import studio
from studio_clip import search

ROOT = Path(__file__).parents[1]
SIDE, ACROSS, NOUNS = 128, 16, 64
PAIRS = [
    (query, made) for query in ("label", "zh", "paraphrase") for made in ("label", "zh", "paraphrase") if query != made
]


def save(folder: Path, kind: str, words: list[dict[str, str]], host: studio.Studio, *, recipes: bool) -> None:
    """Cut a sheet into its pictures, `0.png` to `63.png`, each with a recipe of its prompt if that is asked for."""
    sheet = PIL.Image.open(ROOT / "docs" / "recognition" / f"sheet-{kind}.png").convert("RGB")
    folder.mkdir()
    for place in range(NOUNS):
        left, top = place % ACROSS * SIDE, place // ACROSS * SIDE
        picture = studio.Image(sheet.crop((left, top, left + SIDE, top + SIDE)))
        if recipes:
            some = host.generate("grid", images=[picture]).recipe
            assert some is not None
            inputs = {"prompt": words[place][kind]}
            picture = picture.attach(some.model_copy(update={"inputs": inputs, "output": picture.ref}), None)
        picture.save(folder / f"{place}.png")


def ranks(host: studio.Studio, folder: Path, queries: list[str]) -> np.ndarray:
    """For each noun the number of pictures that are found before its own."""
    found = [[int(hit.path.stem) for hit in search.search(host, text, folder, n=NOUNS).hits] for text in queries]
    return np.array([hits.index(place) for place, hits in enumerate(found)])


def main() -> None:
    """Print recall by picture only, and by picture and recipe."""
    words = json.loads((ROOT / "benchmarks" / "recognition_prompts.json").read_text("utf-8"))[:NOUNS]
    print("| query | pictures made from | nouns | by | recall@1 | recall@5 |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as home, studio.Studio(home=home, device="cpu") as host:
        for name, recipes in (("picture", False), ("picture and recipe", True)):
            total = []
            for kind in ("label", "zh", "paraphrase"):
                save(Path(home) / f"{kind}-{recipes}", kind, words, host, recipes=recipes)
            for query, made in PAIRS:
                places = ranks(host, Path(home) / f"{made}-{recipes}", [each[query] for each in words])[1::2]
                total.append(places)
                recall = [f"{(places < k).mean():.0%}" for k in (1, 5)]
                print(f"| {query} | {made} | {len(places)} | {name} | {' | '.join(recall)} |", flush=True)
            every = np.concatenate(total)
            print(f"| all | all | {len(every)} | {name} | {(every < 1).mean():.0%} | {(every < 5).mean():.0%} |")


if __name__ == "__main__":
    main()
