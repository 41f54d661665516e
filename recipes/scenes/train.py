"""Train the starter's U-Net further, on composed scenes and on its single pictures.

The autoencoder and the text tower do not change.

    python -m recipes.scenes.train --work training --minutes 90

`--work` has the data set of `python -m recipes.data`. The run is `WORK/scenes` (stop it at any time; the same command
resumes it), the result `WORK/scenes/starter`, in the layout of the starter that ships.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recipes.data import fetch
from recipes.data.shares import share
from recipes.scenes import captions, picture, scene, sprites, things
from studio import devices
from studio.devices import torch_setup
from studio.devices.precision import autocast
from studio.training.ema import Ema
from studio.training.run import Run

SIZE = 128


def open_sprites(cache: Path) -> picture.Sprites:
    """The sprites of the objects, from the packages in `cache` (downloaded if necessary)."""
    pictures, words = (fetch.fetch(package, cache) / "package" for package in (fetch.EMOJI, fetch.WORDS))
    return picture.Sprites(sprites.load(pictures, words, [thing.label for thing in things.read()]))


class Pool:
    """Scenes and their latents: a ring buffer in which new scenes replace the oldest.

    Encoding a scene takes a third of the time of training on it, so each is seen a few times, in other words.
    """

    def __init__(self, encode: Callable[[np.ndarray], Tensor], own: picture.Sprites, size: int, seed: str) -> None:
        """`encode` takes uint8 (N, H, W, 3) to latents (N, C, h, w)."""
        self._encode, self._own, self._size = encode, own, size
        self._words, self._pixels = random.Random(seed), np.random.default_rng(list(seed.encode()))
        self.scenes: list[scene.Scene] = []
        self._latents: list[Tensor] = []
        self._oldest = 0

    def add(self, count: int) -> None:
        """Compose `count` new scenes."""
        scenes = [scene.draw(self._words) for _ in range(count)]
        made = np.stack([picture.draw(each, self._own, SIZE, self._pixels).pixels for each in scenes])
        for each, latents in zip(scenes, self._encode(made), strict=True):
            if len(self.scenes) < self._size:
                self.scenes.append(each)
                self._latents.append(latents)
            else:
                self.scenes[self._oldest], self._latents[self._oldest] = each, latents
                self._oldest = (self._oldest + 1) % self._size

    def batch(self, count: int) -> tuple[Tensor, list[str]]:
        """Latents (count, C, h, w) of random scenes, and a new caption of each."""
        rows = [self._words.randrange(len(self.scenes)) for _ in range(count)]
        texts = [captions.caption(self.scenes[row], self._words) for row in rows]
        return torch.stack([self._latents[row] for row in rows]), texts


def shares(records: Sequence[dict[str, Any]]) -> Tensor:
    """The sampling weight of each single picture: as in the starter's training, and higher for frequent objects."""
    rank = {thing.label: at for at, thing in enumerate(things.read())}
    return torch.tensor([
        share(record)
        + (5 * things.weight(rank[record["label"]]) if record["source"] == "emoji" and record["label"] in rank else 0)
        for record in records
    ])  # fmt: skip


def train(folder: Path, unet: Any, make_pool: Callable[[str], Pool], latents: Tensor, records: Sequence[dict[str, Any]],
          encode_text: Callable[[list[str]], Tensor], *, device: torch.device, minutes: float, steps: int, batch: int,
          peak: float, single: float, seed: int = 0) -> Any:  # fmt: skip
    """Train, or resume training, in `folder`; return the EMA of the U-Net.

    Args:
        make_pool: creates a pool of scenes from a seed.
        latents: (N, C, h, w) of single pictures; row i belongs to `records[i]`.
        encode_text: captions to token states (len, T, W).
        single: the fraction of single pictures in each batch.
    """
    from recipes.text import captions as single_captions
    from studio_diffusion import train_image

    model = unet.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    ema = Ema(model, 0.996)
    run = Run(folder, model, optimizer, ema, steps=steps, minutes=minutes, log_every=20)
    words = random.Random(f"{seed}-{run.step}")
    noise = torch.Generator().manual_seed(seed * 1_000_003 + run.step)
    weights = shares(records)
    pool = make_pool(f"{seed}-{run.step}")
    pool.add(4 * batch)
    known = round(batch * single)
    for _ in run:
        run.rate(peak, warmup=100)
        if not run.step % 4:
            pool.add(batch)
        composed, texts = pool.batch(batch - known)
        rows = torch.multinomial(weights, known, replacement=True, generator=noise)
        x0 = torch.cat([composed, latents[rows]]).to(device)  # (B, C, h, w)
        texts += [single_captions.caption(records[row], words) for row in rows.tolist()]
        texts = ["" if words.random() < 0.1 else text for text in texts]
        e = torch.randn(x0.shape, generator=noise).to(device)
        s = train_image.noise_levels(batch, noise).to(device)
        with autocast(device):
            v = model(torch.lerp(x0, e, s[:, None, None, None]), s * 1000, encode_text(texts)).sample
        error = (v.float() - (e - x0)).square().mean((1, 2, 3))
        loss = error.mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ema.update(model)
        run.log(
            loss=loss.item(), scenes=error[: batch - known].mean().item(), single=error[batch - known :].mean().item()
        )
    return ema.module


def single_latents(vae: Any, pictures: np.ndarray, kept: Path) -> Tensor:
    """Latents of all single pictures, computed once and cached in the NumPy file `kept`."""
    from studio_diffusion import export

    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.save(kept, export.encode(vae, pictures).numpy())
    return torch.from_numpy(np.load(kept))


def main() -> None:
    """Parse, train, write the starter."""
    parser = argparse.ArgumentParser(description="Train the image starter's U-Net on composed scenes.")
    parser.add_argument("--work", type=Path, default=Path("training"), help="folder of data sets, runs and results")
    parser.add_argument("--minutes", type=float, default=90, help="training time, earlier sittings counted in")
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=5e-4, help="highest learning rate")
    parser.add_argument("--single", type=float, default=0.37, help="part of each batch that is single pictures")
    parser.add_argument("--pool", type=int, default=6000, help="scenes kept in memory")
    given = parser.parse_args()
    torch_setup.prepare()
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    from recipes.data import build
    from studio_diffusion import export, train_image
    from studio_diffusion.image import STARTER

    device = torch.device(devices.choose(None))
    stock: dict[str, Any] = {"low_cpu_mem_usage": False, "local_files_only": True, "torch_dtype": torch.float32}
    vae = AutoencoderKL.from_pretrained(STARTER / "vae", **stock).to(device).eval()
    unet = UNet2DConditionModel.from_pretrained(STARTER / "unet", **stock)
    tower = CLIPTextModel.from_pretrained(STARTER / "text_encoder", local_files_only=True, dtype=torch.float32)
    pictures, records = build.load(given.work / "data")
    out = given.work / "scenes"
    latents = single_latents(vae, pictures, out / "single.npy")
    keep = [index for index, record in enumerate(records) if record["split"] == "train"]
    own = open_sprites(given.work / "cache")

    def make_pool(seed: str) -> Pool:
        return Pool(lambda made: export.encode(vae, made), own, given.pool, seed)

    encode = train_image.text_states(tower.to(device).eval(), STARTER / "tokenizer")
    made = train(out, unet, make_pool, latents[keep], [records[index] for index in keep], encode, device=device,
                 minutes=given.minutes, steps=given.steps, batch=given.batch, peak=given.rate,
                 single=given.single)  # fmt: skip
    export.save(out / "starter", vae, made, tower, STARTER / "tokenizer")
    print(f"the starter is in {out / 'starter'}")


if __name__ == "__main__":
    main()
