"""`studio train video`, with the image starter's VAE and text encoder. Loads no torch until run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import studio
from studio.errors import InputError, nearest
from studio.training.options import TrainingOptions


class TrainVideo(studio.Trainer):
    """Train the video model on pictures and on synthetic motion made from them."""

    name = "video"

    class Options(TrainingOptions):
        """See TrainingOptions."""

        groups: str = studio.field("animals,food", help="comma-separated groups of emoji to train on")
        things: int = studio.field(0, ge=0, le=100_000, help="train only on this many, the most common; 0 is all")
        also: str = studio.field("", help="comma-separated labels to add, of any group: `red apple,house`")
        frames: int = studio.field(32, ge=1, le=65_536, help="batch size in frames, of pictures and clips together")
        moving: float = studio.field(
            0.75, ge=0, le=1, help="fraction of frames from clips at the end of the run; it starts at a third of that"
        )
        animated: bool = studio.field(
            False, help="train also on animated emoji, with the verb `moving`; downloads 700 MB the first time"
        )
        rate: float = studio.field(1e-3, gt=0, lt=0.1, help="peak learning rate")

    def run(self, options: Any, console: studio.Console) -> None:
        """Write `work/video/model`: `config.json` and weights. Raises InputError as `chosen` does."""
        device = options.torch_device()
        import torch

        from studio.devices.precision import fast_dtype
        from studio.loaders import diffusers, transformers
        from studio.training.peers import Peers
        from studio_datasets import animated, build, fetch
        from studio_diffusion.image import STARTER
        from studio_video import files, latent_cache, train
        from studio_video.texts import TextEncoder

        work = options.folder
        pictures, records = build.load(work / "data")
        keep = chosen(records, options)
        vae = diffusers.pretrained("AutoencoderKL", STARTER / "vae")
        selected = [records[i] for i in keep]
        with Peers().first_alone():
            latents = latent_cache.make(
                vae.to(device, getattr(torch, fast_dtype(device.type))),
                pictures[keep],
                [record["id"] for record in selected],
                work / "video" / "bank.safetensors",
            )
            films = {}
            if options.animated:
                packages = [fetch.fetch(each, work / "cache") / "package" for each in fetch.ANIMATED]
                found, row = animated.files(packages), {record["id"]: i for i, record in enumerate(selected)}
                shown = {name: found[name] for name in row if name in found}
                cached = latent_cache.films(vae, shown, pictures.shape[1], work / "video" / "films.safetensors")
                films = {row[name]: frames for name, frames in cached.items()}
                console.print(f"{len(films)} of {len(selected)} things have an animation")
        tower = transformers.model("CLIPTextModel", "CLIPTextConfig", STARTER / "text_encoder").to(device)
        texts = TextEncoder(tower, transformers.tokenizer("CLIPTokenizer", STARTER / "tokenizer"))
        model = train.train(
            latents, selected, texts, work / "video", device=device, steps=options.steps, minutes=options.minutes,
            frames=options.frames, moving=(options.moving / 3, options.moving), peak=options.rate,
            films=films,
        )  # fmt: skip
        if not Peers().rank:  # the first process of the run writes the result
            files.save(work / "video" / "model", model)
            console.print(f"the model is in {work / 'video' / 'model'}")


def chosen(records: Sequence[dict[str, Any]], options: Any) -> list[int]:
    """The rows of the emoji to train on: those of the groups, limited to the `things` most common, and those of `also`.

    Raises InputError for an unknown group or label, and if none is given.
    """
    emoji = [i for i, r in enumerate(records) if r["source"] == "emoji" and r["split"] == "train"]
    groups = _known("groups", options.groups, (records[i]["group"] for i in emoji))
    also = _known("also", options.also, (records[i]["label"] for i in emoji))
    if not groups | also:
        raise InputError("groups", "`groups` and `also` are empty", hint="give a group, such as `animals`")
    keep = [i for i in emoji if records[i]["group"] in groups]
    if options.things:  # by the frequency of their names in WordNet's tagged texts
        keep = sorted(keep, key=lambda i: (-records[i]["count"], records[i]["label"]))[: options.things]
    return keep + [i for i in emoji if records[i]["label"] in also and i not in keep]


def _known(name: str, given: str, known: Iterable[str]) -> set[str]:
    """The names of a comma-separated option. Raises InputError for an unknown one."""
    names = {each.strip() for each in given.split(",")} - {""}
    there = sorted(set(known))
    for each in sorted(names.difference(there)):
        hint = f"did you mean `{near}`?" if (near := nearest(each, there)) else f"it has {', '.join(there[:20])}"
        raise InputError(name, f"`{name}` has `{each}`, which is not in the data set", hint=hint)
    return names
