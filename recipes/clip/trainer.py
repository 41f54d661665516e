"""`python -m recipes.clip`: train the starter's CLIP on the data set."""

from __future__ import annotations

from typing import Any

import studio
from studio_clip.trainers import ClipOptions


class TrainClip(studio.Trainer):
    """Train the starter's CLIP on the data set with a contrastive loss."""

    name = "starter-clip"
    Options = ClipOptions

    def run(self, options: Any, console: studio.Console) -> None:
        """Write `work/clip/model`: `open_clip_config.json` and all weights but a locked text tower's, which is that of
        `python -m recipes.text`.
        """
        from recipes.clip import efficientnet
        from recipes.data import build, fetch
        from recipes.text import captions
        from studio.loaders import transformers
        from studio_clip.trainers import train_towers

        work = options.folder
        pictures, records = build.load(work / "data")
        keep = [index for index, record in enumerate(records) if record["split"] == "train"]
        tokens = transformers.tokenizer("CLIPTokenizer", work / "text" / "tokenizer")
        text = None
        if options.lock in ("text", "both"):
            text = transformers.model("CLIPTextModelWithProjection", "CLIPTextConfig", work / "text" / "tower")

        def imagenet(trunk: Any) -> dict[str, Any]:
            weights = efficientnet.read(fetch.fetch(fetch.EFFICIENTNET, work / "cache"))
            return efficientnet.to_timm(weights, trunk)

        train_towers(options, console, pictures[keep], [records[index] for index in keep], captions.caption, tokens,
                     text, imagenet)  # fmt: skip
