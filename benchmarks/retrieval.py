"""Does CLIP find a held-out picture by its English label among 500, of which 225 were never trained on?

python benchmarks/retrieval.py --data training/data
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from studio import torch_setup

torch_setup.prepare()

from studio_clip import model as clip  # noqa: E402  (needs prepare)
from studio_datasets import build  # noqa: E402

CANDIDATES = 500


def main() -> None:
    """Embed held-out pictures, others to fill up, and the labels; print recall."""
    parser = argparse.ArgumentParser(description="Measure text-to-image retrieval on held-out pictures.")
    parser.add_argument("--data", type=Path, required=True, help="data set of `studio train data`")
    parser.add_argument("--model", type=Path, default=clip.WEIGHTS, help="CLIP's folder (default: what ships)")
    parser.add_argument(
        "--starter", type=Path, help="the image model's folder, for the text tower (default: what ships)"
    )
    given = parser.parse_args()
    pictures, records = build.load(given.data)
    loaded = clip.load(given.model, given.starter)
    held = [index for index, record in enumerate(records) if record["split"] == "test"]
    rest = [index for index, record in enumerate(records) if record["split"] == "train"]
    more = np.random.default_rng(0).choice(rest, CANDIDATES - len(held), replace=False).tolist()
    chosen = [*held, *more]
    images = torch.cat([loaded.pictures(pictures[chosen[start : start + 64]]) for start in range(0, len(chosen), 64)])
    scores = loaded.texts([records[index]["label"] for index in held]).float() @ images.float().T  # (held, 500)
    own = scores[torch.arange(len(held)), torch.arange(len(held))]
    ranks = (scores > own[:, None]).sum(1)
    print(f"{len(held)} labels, {len(chosen)} pictures")
    for k in (1, 5, 10):
        print(f"recall@{k}: {(ranks < k).float().mean():.1%} (chance {k / len(chosen):.1%})")


if __name__ == "__main__":
    main()
