"""`python -m recipes.gpt`: pre-train the text starter, and write its conversations for `studio train gpt-chat`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import studio
from studio.files import make_folder, write_atomically
from studio_gpt.trainers import GPTOptions


class TrainGPT(studio.Trainer):
    """Pre-train the text starter, and write the conversations that it is fine-tuned on."""

    name = "starter-gpt"

    class Options(GPTOptions):
        """See GPTOptions."""

        begin: str = studio.field(
            "", help="folder of a CLIP text tower, with its tokenizer beside it, to initialise the decoder from"
        )

    def run(self, options: Any, console: studio.Console) -> None:
        """Write `work/gpt/model` in transformers' layout (a Llama, or a GPT-2 if it was initialised from a text tower),
        `work/gpt/texts` and `work/gpt-chat/chats.jsonl` and `kept.jsonl`.
        """
        from studio.training.peers import Peers
        from studio_gpt.trainers import llama, pretrain

        with Peers().first_alone():
            documents, novels = write_texts(options.folder)
            write_chats(options.folder)
        build = _from_tower if options.begin else llama
        # The tokenizer is trained on the documents only, so that names are tokens: see docs/log.md.
        pretrain(options, console, [documents, novels], [documents], build)


def _from_tower(options: Any, tokenizer: Any) -> Any:
    from recipes.gpt.tower import decoder

    return decoder(Path(options.begin), tokenizer, options.context)


def write_texts(work: Path) -> tuple[Path, Path]:
    """The starter's corpus: descriptions, and novels. Each file is written if it does not exist."""
    from recipes.data import build
    from recipes.data.novels import novels
    from recipes.gpt.documents import documents
    from studio_gpt.corpus import END

    folder = work / "gpt" / "texts"
    make_folder(folder)
    texts, stories = folder / "documents.txt", folder / "novels.txt"
    if not texts.exists():
        made = documents(_records(work), build.wordnet(work / "cache"))
        write_atomically(texts, f"{END}\n".join(made).encode())
    if not stories.exists():
        write_atomically(stories, END.join(novels(work / "cache")).encode())
    return texts, stories


def write_chats(work: Path) -> tuple[Path, Path]:
    """The starter's ideas and picture prompts, for training and held out, written if they do not exist."""
    from recipes.gpt import ideas

    chats, kept = work / "gpt-chat" / "chats.jsonl", work / "gpt-chat" / "kept.jsonl"
    if not chats.exists():
        make_folder(chats.parent)
        records = _records(work)
        for path, pairs in ((kept, ideas.held_out_pairs(records)), (chats, ideas.pairs(records))):
            write_atomically(path, "".join(f"{ideas.chat(*pair)}\n" for pair in pairs).encode())
    return chats, kept


def _records(work: Path) -> list[dict[str, Any]]:
    """The records of the data set, with WordNet's wordings of them if `python -m recipes.text` ran."""
    from recipes.data import build
    from recipes.text import wordings

    records, found = build.load(work / "data")[1], work / "text" / "wordings.json"
    return wordings.join(records, wordings.load(found)) if found.exists() else records
