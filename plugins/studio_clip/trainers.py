"""`studio train clip`, on a folder of pictures with captions. Loads no torch until run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import studio
from studio.errors import StudioError
from studio.training.options import TrainingOptions, training_data
from studio_clip import folders

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

    from studio.training.pictures import Captioner

SIZE = 128
"""The side of training pictures, in pixels."""


class TrainText(studio.Trainer):
    """Train the text tower of the starter."""

    name = "text"
    starter = "python -m recipes.text"


class ClipOptions(TrainingOptions):
    """The options of contrastive training."""

    lock: Literal["text", "image", "both", "none"] = studio.field(
        "text",
        help="which tower is locked: the text tower, the image tower (except its last projection; LiT), both (only "
        "that projection is trained) or none (both from scratch)",
    )
    tower: Literal["efficientnet", "vit"] = studio.field(
        "efficientnet",
        help="image tower: EfficientNet-Lite0 with its ImageNet weights, or a small ViT from scratch",
    )
    batch: int = studio.field(
        256, ge=8, le=65536, help="batch size: pairs in a step's loss; all other pairs are negatives"
    )
    chunk: int = studio.field(64, ge=1, le=4096, help="pairs per forward pass; larger batches use gradient caching")
    rate: float = studio.field(1e-3, gt=0, lt=0.1, help="peak learning rate")
    from_starter: bool = studio.field(
        False, help="initialise with the image tower of the starter, if `tower` is the same"
    )


class TrainClip(studio.Trainer):
    """Train CLIP on pictures and captions with a contrastive loss: from scratch, or with a locked tower (LiT)."""

    name = "clip"
    starter = "python -m recipes.clip"

    class Options(ClipOptions):
        """See ClipOptions."""

        data: str = studio.field(
            "", help="a folder of pictures, each with its caption in NAME.txt beside it, or in a subfolder named by it"
        )

    def run(self, options: Any, console: studio.Console) -> None:
        """Write `work/clip/model`: `open_clip_config.json` and all weights but a locked text tower's, which is the
        starter's.
        """
        data = training_data(self, "data", options.data, "a folder of pictures with captions")
        from studio.loaders import transformers
        from studio.training.pictures import as_written, captioned
        from studio_clip import model as clip

        pictures, captions = captioned(data, SIZE)
        tokens = transformers.tokenizer("CLIPTokenizer", folders.tokenizer_folder())
        locked = clip.text_tower() if options.lock in ("text", "both") else None
        train_towers(options, console, pictures, captions, as_written, tokens, locked)


def train_towers(
    options: Any, console: studio.Console, pictures: np.ndarray, records: Sequence[Any], caption: Captioner,
    tokens: CLIPTokenizer, locked: CLIPTextModelWithProjection | None, imagenet: Any = None,
) -> None:  # fmt: skip
    """Train the towers and write `work/clip/model`.

    Args:
        pictures, records, caption: see `train_pairs.train`.
        locked: the text tower that is not trained; None trains a fresh one.
        imagenet: a function that gives the weights of EfficientNet's trunk; by default they are the starter's.

    Raises StudioError for options that do not fit each other.
    """
    device = options.torch_device()
    from studio.files import new_folder
    from studio.training.peers import Peers
    from studio_clip import convert, train_pairs
    from studio_clip import model as clip

    text = locked.train() if locked is not None else train_pairs.text_tower(len(tokens), tokens.model_max_length)
    model = train_pairs.build(text, options.tower)
    _begin(model, options, imagenet or _starter_trunk)
    train_pairs.lock(model, options.lock)
    model = train_pairs.train(
        pictures, records, model, tokens, options.folder / "clip", device=device, steps=options.steps,
        minutes=options.minutes, batch=options.batch, chunk=options.chunk, peak=options.rate, caption=caption,
    )  # fmt: skip
    if Peers().rank:
        return  # the first process of the run writes the result
    out = options.folder / "clip" / "model"
    with new_folder(out) as part:
        clip.save(part, model, text.config, convert.TOWERS[options.tower])
        if locked is None:
            clip.save_text(part, model, text.config, tokens)
    console.print(f"CLIP is in {out}")


def _begin(model: Any, options: Any, imagenet: Any) -> None:
    """Initialise the image tower, if it is not from scratch. Raises StudioError for options that do not fit."""
    from studio.loaders import open_clip as loaders
    from studio_clip import convert
    from studio_clip import model as clip

    if options.from_starter:
        shipped = loaders.configuration(folders.WEIGHTS)["model_cfg"]["vision_cfg"]
        if shipped != convert.TOWERS[options.tower]:
            fits = next(name for name, vision in convert.TOWERS.items() if vision == shipped)
            raise StudioError(
                f"the starter's image tower is `{fits}`, not `{options.tower}`",
                hint=f"give `--tower {fits}`, or remove `--from-starter`",
            )
        begin = clip.stock()
        model.visual.load_state_dict(begin.visual.state_dict())
        model.logit_scale.data.copy_(begin.logit_scale)
    elif options.tower == "efficientnet":
        model.visual.trunk.load_state_dict(imagenet(model.visual.trunk))
    elif options.lock in ("image", "both"):
        raise StudioError(
            "a locked ViT from scratch would not be trained",
            hint="give `--tower efficientnet`, or lock only the text tower",
        )


def _starter_trunk(trunk: Any) -> dict[str, Any]:
    """The weights of the starter's image tower, whose trunk is EfficientNet-Lite0 with its ImageNet weights."""
    from studio_clip import model as clip

    state: dict[str, Any] = clip.stock().visual.trunk.state_dict()
    return state
