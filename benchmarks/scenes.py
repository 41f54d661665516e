"""Does the image starter follow prompts? Seven skills, 50 prompts each, with held-out combinations.

The skills are GenEval's (Ghosh et al. 2023) and backgrounds: one object, its colour, counting, two objects, their
relative position, the colours of two objects, the background. Prompts follow a rule (`prompts`): the 300 objects that
people ask for most, in combinations that `recipes/scenes/held_out.py` holds out, sampled with a seed. Pictures have
the seeds 0, 1, 2 … in the prompts' order, none is chosen. `scene_judge.py` classifies them.

    python benchmarks/scenes.py --cache CACHE --out docs/scenes               # the starter that ships
    python benchmarks/scenes.py --cache CACHE --out OUT --weights FOLDER      # another folder of its layout
    python benchmarks/scenes.py --cache CACHE --out OUT --validate            # the classifier, on composed pictures
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from studio.devices import torch_setup
from studio.spec import ModelRef

torch_setup.prepare()

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `recipes`, which is not installed

import scene_judge  # noqa: E402  (all of these need prepare)
from recognition import interval, sheet  # noqa: E402
from scene_prompts import PROMPTS, SKILLS, THINGS, prompts  # noqa: E402

from recipes.scenes import captions, picture, things  # noqa: E402
from recipes.scenes.scene import Scene  # noqa: E402
from recipes.scenes.train import open_sprites  # noqa: E402
from studio_diffusion import export  # noqa: E402
from studio_diffusion.image import STARTER  # noqa: E402

LANGUAGES = {"en": captions.english, "zh": captions.chinese}


def verdict(judge: scene_judge.SceneJudge, skill: str, asked: Scene, pixels: np.ndarray) -> dict[str, bool]:
    """Whether the picture has what the skill asks for (`right`), and the stricter or looser readings of it."""
    if skill == "object":
        return {"right": judge.one(pixels, asked.parts[0].thing)}
    if skill == "colour":
        found = scene_judge.regions(pixels)
        right = bool(found) and scene_judge.colour(pixels, found[0]) == asked.parts[0].colour
        return {"right": right, "and_object": right and judge.one(pixels, asked.parts[0].thing)}
    if skill == "count":
        right = scene_judge.count(pixels) == asked.parts[0].count
        return {"right": right, "and_object": right and judge.one(pixels, asked.parts[0].thing)}
    if skill == "ground":
        return {"right": judge.ground(pixels) == asked.ground}
    ways = judge.two(pixels, asked)
    if skill == "two":
        return {"right": bool(ways)}
    if skill == "position":
        return {"right": any(scene_judge.placed(a, b, asked.relation) for a, b in ways), "both_there": bool(ways)}
    wanted = tuple(part.colour for part in asked.parts)
    told = [tuple(scene_judge.colour(pixels, part) for part in way) for way in ways]
    return {"right": wanted in told, "both_there": bool(ways)}


def composed(own: picture.Sprites, scenes: Sequence[Scene], folder: Path | None = None) -> np.ndarray:
    """The scenes as the composer draws them, uint8 (N, 128, 128, 3); with a folder, through its autoencoder."""
    rng = np.random.default_rng(0)
    made = np.stack([picture.draw(each, own, 128, rng).pixels for each in scenes])
    if folder is None:
        return made
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(folder / "vae", low_cpu_mem_usage=False, local_files_only=True).float().eval()
    with torch.inference_mode():
        latents = export.encode(vae, made) / vae.config.scaling_factor
        decoded = torch.cat([vae.decode(part).sample for part in latents.split(16)])
    return decoded.div(2).add(0.5).clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).numpy()


class Drawer:
    """Pictures of texts by a folder of weights, eight at a time, as `studio image` makes them in float32."""

    def __init__(self, folder: Path, steps: int, guidance: float) -> None:
        from studio_diffusion.image import ImageGenerator

        self.steps, self.guidance = steps, guidance
        self.generator = ImageGenerator(folder)
        self.model = self.generator.load(ModelRef(), "cpu", "float32")

    @torch.inference_mode()
    def draw(self, texts: Sequence[str]) -> np.ndarray:
        """uint8 (N, 128, 128, 3); the seeds are 0, 1, 2 …"""
        import studio

        made = []
        for start in range(0, len(texts), 8):
            some = enumerate(texts[start : start + 8], start)
            states = [
                self.generator.start(
                    self.model,
                    self.generator.Inputs(prompt=text, steps=self.steps, guidance=self.guidance),
                    studio.Rng(seed),
                )
                for seed, text in some
            ]
            for _ in range(self.steps):
                states = self.generator.step(self.model, states)
            made += [np.asarray(each.pil.convert("RGB")) for each in self.generator.finish_many(self.model, states)]
        return np.stack(made)


def measured(judge: scene_judge.SceneJudge, skill: str, asked: Sequence[tuple[Scene, str]], pixels: np.ndarray,
             others: bool) -> dict[str, Any]:  # fmt: skip
    """What `verdict` says of each picture, and the share of each reading.

    With `others` each picture is judged by the prompt after its own too: how often a wrong one is taken for right.
    """
    found = [verdict(judge, skill, each, one) for (each, _), one in zip(asked, pixels, strict=True)]
    if others:
        turned = zip(asked, np.roll(pixels, 1, axis=0), strict=True)
        wrong = [verdict(judge, skill, each, one)["right"] for (each, _), one in turned]
        found = [each | {"wrong_accepted": other} for each, other in zip(found, wrong, strict=True)]
    entry: dict[str, Any] = {"count": len(found)}
    for reading in found[0]:
        hits = sum(each[reading] for each in found)
        bounds = [round(min(max(bound, 0), 100), 1) for bound in interval(hits, len(found))]
        entry[reading] = {"hits": hits, "percent": round(100 * hits / len(found), 1), "interval": bounds}
    entry["prompts"] = [{"text": text, **each} for (_, text), each in zip(asked, found, strict=True)]
    return entry


def line(skill: str, language: str, entry: dict[str, Any]) -> str:
    """An entry's shares as a line."""
    shares = {name: share for name, share in entry.items() if isinstance(share, dict)}
    return f"{skill} {language}: " + ", ".join(
        f"{name} {share['percent']:.0f}% ({share['interval'][0]:.0f} to {share['interval'][1]:.0f})"
        for name, share in shares.items()
    )


def main() -> None:
    """Parse, judge, write the numbers and the contact sheets."""
    parser = argparse.ArgumentParser(description="Judge whether scenes are drawn as asked.")
    parser.add_argument("--cache", type=Path, required=True, help="where packages are fetched to")
    parser.add_argument("--out", type=Path, required=True, help="folder for result.json and contact sheets")
    parser.add_argument("--weights", type=Path, default=STARTER, help="folder of weights; by default the starter's")
    parser.add_argument("--validate", action="store_true", help="judge composed pictures in place of drawn ones")
    parser.add_argument("--ceiling", action="store_true", help="the same through the autoencoder of `--weights`")
    parser.add_argument("--languages", nargs="+", choices=tuple(LANGUAGES), default=["en"])
    parser.add_argument("--skills", nargs="+", choices=SKILLS, default=list(SKILLS))
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=5.0)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    own = open_sprites(given.cache)
    judge = scene_judge.SceneJudge(given.cache, own, [thing.label for thing in things.read()[:THINGS]])
    if given.validate or given.ceiling:
        folder = given.weights if given.ceiling else None

        def make(scenes: list[Scene], texts: list[str]) -> np.ndarray:
            return composed(own, scenes, folder)
    else:
        drawer = Drawer(given.weights, given.steps, given.guidance)

        def make(scenes: list[Scene], texts: list[str]) -> np.ndarray:
            return drawer.draw(texts)

    result: dict[str, Any] = {}
    for skill in given.skills:
        for language in given.languages:
            words = random.Random(f"words {skill}")
            asked = [(each, LANGUAGES[language](each, words, plain=True)) for each in prompts(skill, given.prompts)]
            pixels = make([each for each, _ in asked], [text for _, text in asked])
            entry = measured(judge, skill, asked, pixels, given.validate or given.ceiling)
            result.setdefault(skill, {})[language] = entry
            sheet(pixels, 10).save(given.out / f"{skill}-{language}.png", optimize=True)
            (given.out / "result.json").write_text(json.dumps(result, ensure_ascii=False) + "\n", "utf-8")
            print(line(skill, language, entry), flush=True)


if __name__ == "__main__":
    main()
