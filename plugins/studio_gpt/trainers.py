"""`studio train gpt` and `gpt-chat`: a decoder from text files, and from conversations. Loads no torch until run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import studio
from studio.errors import StudioError
from studio.training.options import TrainingOptions


class TrainGPT(studio.Trainer):
    """Pre-train a language model on text files."""

    name = "gpt"

    class Options(TrainingOptions):
        """See TrainingOptions."""

        texts: list[str] = studio.field(
            default_factory=list, help="UTF-8 text files, or folders of `.txt`; by default the starter's own texts"
        )
        vocab: int = studio.field(4096, ge=300, le=1 << 20, help="tokens that the byte-level BPE learns")
        context: int = studio.field(256, ge=8, le=1 << 17, help="tokens that the model sees at once")
        layers: int = studio.field(4, ge=1, le=1024, help="layers")
        width: int = studio.field(256, ge=8, le=1 << 15, help="numbers that stand for a token; a multiple of `heads`")
        heads: int = studio.field(4, ge=1, le=1024, help="attention heads")
        batch: int = studio.field(8, ge=1, le=65536, help="rows of `context` tokens in one forward pass")
        accumulate: int = studio.field(1, ge=1, le=65536, help="forward passes that one step sums up")
        rate: float = studio.field(2e-3, gt=0, lt=0.1, help="highest learning rate")

    def run(self, options: Any, console: studio.Console) -> None:
        """Write `work/gpt/model`, a Llama in transformers' layout."""
        device = options.torch_device()
        import torch

        from studio.training.peers import Peers
        from studio_gpt import corpus, train
        from studio_gpt.model import GPT, llama

        work = options.folder / "gpt"
        files = corpus.text_files(options.texts or [str(_own_texts(options.folder))])
        tokenizer = _tokenizer(files, work, options)
        vocabulary = tokenizer.get_vocab_size()
        if not (work / "tokens.bin").exists():
            count = corpus.encode(corpus.blocks(files), tokenizer, work / "tokens.bin")
            console.print(f"{count:,} tokens of {vocabulary:,} kinds")
        data = corpus.TokenFile(work / "tokens.bin", vocabulary, options.context)
        hidden = max(64, options.width * 5 // 2 // 64 * 64)
        shape = llama(vocab=vocabulary, context=options.context, layers=options.layers, heads=options.heads,
                      width=options.width, hidden=hidden)  # fmt: skip
        model = GPT(shape).initialise(torch.Generator().manual_seed(0)).to(device)
        model = train.train(
            model, data, work / "run", steps=options.steps, minutes=options.minutes, batch=options.batch,
            accumulate=options.accumulate, peak=options.rate,
        )  # fmt: skip
        if Peers().rank:
            return  # the first process of the run writes the result
        train.publish(model, corpus.as_tokens(tokenizer), work / "model")
        loss = train.validate(model, data, options.batch)
        console.print(f"validation loss {loss:.4f} nats a token; the model is in {work / 'model'}")


class TuneGPT(studio.Trainer):
    """Fine-tune a language model on conversations."""

    name = "gpt-chat"

    class Options(TrainingOptions):
        """See TrainingOptions."""

        chats: str = studio.field(
            "", help="JSON lines with `messages`, or `prompt` and `completion`; by default ideas and picture prompts"
        )
        model: str = studio.field(
            "", help="what to begin with: a model as for `studio text`; by default that of `studio train gpt`"
        )
        lora: int = studio.field(0, ge=0, le=4096, help="rank of adapters that are trained in place of all weights")
        batch: int = studio.field(32, ge=1, le=65536, help="conversations in a step")
        rate: float = studio.field(1e-3, gt=0, lt=0.1, help="highest learning rate")

    def run(self, options: Any, console: studio.Console) -> None:
        """Write `work/gpt-chat/model`, in transformers' layout and float16."""
        device = options.torch_device()
        from studio import models
        from studio.training.peers import Peers
        from studio_gpt import corpus, load, train, tune

        work = options.folder / "gpt-chat"
        found = load.find(models.path(options.model) if options.model else options.folder / "gpt" / "model")
        tokens = found.tokens()
        chats = Path(options.chats) if options.chats else _own_chats(options.folder)
        made = [tune.sample(messages, tokens, found.config.context) for messages in tune.read(chats)]
        samples = [each for each in made if each is not None]
        console.print(f"{len(samples):,} conversations; {len(made) - len(samples):,} are longer than the context")
        kept = samples[:: corpus.HELD_OUT]
        learnt = [each for place, each in enumerate(samples) if place % corpus.HELD_OUT]
        if not learnt:
            raise StudioError(f"`{chats}` has no two conversations that fit the context", hint="give more of them")
        model = tune.train(
            found.build(str(device), "float32"), learnt, work / "run", steps=options.steps, minutes=options.minutes,
            batch=options.batch, lora=options.lora, peak=options.rate,
        )  # fmt: skip
        if Peers().rank:
            return  # the first process of the run writes the result
        loss = tune.validate(model, kept)
        train.publish(model.half(), tokens, work / "model")
        console.print(f"validation loss {loss:.4f} nats a token; the model is in {work / 'model'}")


def _own_chats(work: Path) -> Path:
    """Ideas and picture prompts of the data set, written if they are not there."""
    from studio_datasets import build
    from studio_gpt import corpus

    path = work / "gpt-chat" / "chats.jsonl"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [corpus.chat(*pair) for pair in corpus.pairs(build.load(work / "data")[1])]
        path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def _own_texts(work: Path) -> Path:
    """The folder of the starter's texts, written from the data set if it is not there."""
    from studio_datasets import build
    from studio_gpt import corpus

    folder = work / "gpt" / "texts"
    if not (folder / "documents.txt").exists():
        made = corpus.documents(build.load(work / "data")[1], build.wordnet(work / "cache"))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "documents.txt").write_text(f"{corpus.END}\n".join(made), "utf-8")
    return folder


def _tokenizer(files: list[Path], work: Path, options: Any) -> Any:
    """The BPE of this run, learnt when it begins."""
    from tokenizers import Tokenizer

    from studio_gpt import corpus

    path = work / "tokenizer.json"
    if not path.exists():
        made = corpus.train_tokenizer(corpus.blocks(files), options.vocab)
        work.mkdir(parents=True, exist_ok=True)
        made.save(str(path))
    return Tokenizer.from_file(str(path))
