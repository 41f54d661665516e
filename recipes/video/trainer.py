"""`python -m recipes.video`: train the video starter on the data set, and on motion synthesized from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import studio
from studio.errors import InputError, nearest
from studio_video.trainers import VideoOptions

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from torch import Tensor

    from studio_video.train import Draw


class TrainVideo(studio.Trainer):
    """Train the video starter on pictures and on synthetic motion made from them."""

    name = "starter-video"

    class Options(VideoOptions):
        """See VideoOptions."""

        groups: str = studio.field("animals,food", help="comma-separated groups of emoji to train on")
        things: int = studio.field(0, ge=0, le=100_000, help="train only on this many, the most common; 0 is all")
        also: str = studio.field("", help="comma-separated labels to add, of any group: `red apple,house`")
        moving: float = studio.field(
            0.75, ge=0, le=1, help="fraction of frames from clips at the end of the run; it starts at a third of that"
        )
        animated: bool = studio.field(
            False, help="train also on animated emoji, with the verb `moving`; downloads 700 MB the first time"
        )

    def run(self, options: Any, console: studio.Console) -> None:
        """Write `work/video/model`: `config.json` and weights. Raises InputError as `chosen` does."""
        from recipes.data import build
        from recipes.data.shares import share
        from recipes.video import draw, latent_cache
        from studio.training.agreement import fingerprint
        from studio.training.peers import Peers
        from studio_video.trainers import train_network

        work = options.folder
        pictures, records = build.load(work / "data")
        keep = chosen(records, options)
        selected = [records[i] for i in keep]
        moving = options.moving / 3, options.moving

        def prepare(vae: AutoencoderKL) -> tuple[Draw, str]:
            with Peers().first_alone():
                names = [record["id"] for record in selected]
                latents = latent_cache.make(vae, pictures[keep], names, work / "video" / "bank.safetensors")
                shown = films(vae, selected, pictures.shape[1], work) if options.animated else {}
            if options.animated:
                console.print(f"{len(shown)} of {len(selected)} things have an animation")
            weights = [share(record) for record in selected]

            def batch(rng: Any, frames: int, done: float) -> Any:
                part = moving[0] + (moving[1] - moving[0]) * done
                return draw.draw(latents, selected, weights, frames, part, rng, shown)

            return batch, fingerprint(selected, list(latents.shape))

        train_network(options, console, prepare, {"moving": moving, "films": options.animated})


def films(vae: AutoencoderKL, records: Sequence[dict[str, Any]], size: int, work: Path) -> dict[int, Tensor]:
    """The latents of the animated emoji of `records`, by row; see `latent_cache.films`."""
    from recipes.data import animated, fetch
    from recipes.video import latent_cache

    packages = [fetch.fetch(each, work / "cache") / "package" for each in fetch.ANIMATED]
    found, row = animated.files(packages), {record["id"]: i for i, record in enumerate(records)}
    shown = {name: found[name] for name in row if name in found}
    cached = latent_cache.films(vae, shown, size, work / "video" / "films.safetensors")
    return {row[name]: frames for name, frames in cached.items()}


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
