"""`studio train gpt` (pre-training) and `gpt-chat` (fine-tuning). Loads no torch until run."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import studio
from studio.errors import StudioError
from studio.files import make_folder, write_atomically
from studio.training.options import TrainingOptions, training_data

if TYPE_CHECKING:
    from studio_gpt.model import GPT


class GPTOptions(TrainingOptions):
    """The options of pre-training."""

    vocab: int = studio.field(4096, ge=300, le=1 << 20, help="vocabulary size of the byte-level BPE tokenizer")
    context: int = studio.field(256, ge=8, le=1 << 17, help="context length in tokens")
    layers: int = studio.field(4, ge=1, le=1024, help="number of layers")
    width: int = studio.field(256, ge=8, le=1 << 15, help="embedding dimension (d_model); a multiple of `heads`")
    heads: int = studio.field(4, ge=1, le=1024, help="number of attention heads")
    batch: int = studio.field(8, ge=1, le=65536, help="batch size: rows of `context` tokens per forward pass")
    accumulate: int = studio.field(1, ge=1, le=65536, help="gradient accumulation steps")
    rate: float = studio.field(2e-3, gt=0, lt=0.1, help="peak learning rate")


class TrainGPT(studio.Trainer):
    """Pre-train a language model on text files."""

    name = "gpt"
    starter = "python -m recipes.gpt"
    starter_options = ("begin",)

    class Options(GPTOptions):
        """See GPTOptions."""

        texts: list[str] = studio.field(default_factory=list, help="UTF-8 text files, or folders of `.txt` files")

    def run(self, options: Any, console: studio.Console) -> None:
        """Write `work/gpt/model` in transformers' layout: a Llama."""
        training_data(self, "texts", " ".join(options.texts), "text files to learn from")
        from studio_gpt import corpus

        files = corpus.text_files(options.texts)
        pretrain(options, console, files, files, llama)


def pretrain(
    options: Any, console: studio.Console, files: list[Path], words: list[Path], build: Callable[[Any, Any], GPT]
) -> None:
    """Train a tokenizer and a decoder, and write `work/gpt/model` in transformers' layout.

    Args:
        files: the texts to learn from; words: those that the tokenizer is trained on.
        build: makes the decoder with its initial weights from the options and the tokenizer.
    """
    device = options.torch_device()
    from studio.training.agreement import agree, fingerprint
    from studio.training.peers import Peers
    from studio.training.run import CHECKPOINT
    from studio_gpt import corpus, train

    work = options.folder / "gpt"
    with Peers().first_alone():
        form = [options.context, options.layers, options.width, options.heads]
        fixed = {"texts": fingerprint(*files), "vocab": options.vocab, "context, layers, width, heads": form}
        if not Peers().rank and not agree(work, fixed, begun=(work / "run" / CHECKPOINT).exists()):
            for name in ("tokens.bin", "tokenizer.json"):  # of other texts, and not trained on yet
                (work / name).unlink(missing_ok=True)
        tokenizer = _tokenizer(words, work, options)
        vocabulary = tokenizer.get_vocab_size()
        if not (work / "tokens.bin").exists():
            count = corpus.encode(corpus.blocks(files), tokenizer, work / "tokens.bin")
            console.print(f"{count:,} tokens, vocabulary size {vocabulary:,}")
    data = corpus.TokenFile(work / "tokens.bin", vocabulary, options.context)
    model = train.train(
        build(options, tokenizer).to(device), data, work / "run", steps=options.steps, minutes=options.minutes,
        batch=options.batch, accumulate=options.accumulate, peak=options.rate,
    )  # fmt: skip
    if Peers().rank:
        return  # the first process of the run writes the result
    train.publish(model, corpus.as_tokens(tokenizer), work / "model")
    loss = train.validate(model, data, options.batch)
    console.print(f"validation loss {loss:.4f} nats per token; the model is in {work / 'model'}")


class TuneGPT(studio.Trainer):
    """Fine-tune a language model on conversations."""

    name = "gpt-chat"
    starter = "python -m recipes.gpt"

    class Options(TrainingOptions):
        """See TrainingOptions."""

        chats: str = studio.field(
            "",
            help="JSON lines with `messages`, or `prompt` and `completion`",
        )
        kept: str = studio.field(
            "", help="validation conversations, in the same format; by default 1 in 64 of `chats` is held out"
        )
        model: str = studio.field(
            "", help="base model, as for `studio text`; by default the output of `studio train gpt`"
        )
        lora: int = studio.field(0, ge=0, le=4096, help="LoRA rank; 0 trains all weights")
        batch: int = studio.field(32, ge=1, le=65536, help="batch size: conversations per step")
        emphasis: float = studio.field(
            1.0, ge=0, le=1000, help="loss weight of the tokens of an answer's first phrase, up to a comma"
        )
        probe: int = studio.field(
            0, ge=0, le=1 << 24, help="first fit only the output head, on this many conversations (linear probing)"
        )
        rate: float = studio.field(1e-3, gt=0, lt=0.1, help="peak learning rate")
        texts: list[str] = studio.field(
            default_factory=list,
            help="for `rows`: UTF-8 text files, or folders of `.txt` files",
        )
        rows: int = studio.field(0, ge=0, le=65536, help="rows of plain text per step, mixed with the conversations")

    def run(self, options: Any, console: studio.Console) -> None:
        """Write `work/gpt-chat/model`, in transformers' layout and float16."""
        chats = training_data(self, "chats", options.chats, "conversations to learn from")
        if options.rows:
            training_data(self, "texts", " ".join(options.texts), "text files for `rows`")
        device = options.torch_device()
        from studio import models
        from studio.training.peers import Peers
        from studio_gpt import corpus, load, train, tune

        work = options.folder / "gpt-chat"
        found = load.find(models.path(options.model) if options.model else options.folder / "gpt" / "model")
        tokens = found.tokens()
        training = _samples(chats, tokens, found.config.context, console)
        if options.kept:
            validation_set = _samples(Path(options.kept), tokens, found.config.context, console)
        else:
            validation_set = training[:: corpus.HELD_OUT]
            training = [each for place, each in enumerate(training) if place % corpus.HELD_OUT]
        if not training or not validation_set:
            raise StudioError(
                f"`{chats}` has fewer than 2 conversations that fit the context", hint="give more conversations"
            )
        phrase = sorted(number for token, number in tokens.tokenizer.get_vocab().items() if "," in token)
        model = found.build(str(device), "float32")
        if options.probe and not (work / "run" / "run.safetensors").exists():
            chosen = random.Random(0).sample(training, min(options.probe, len(training)))
            tune.probe(model, chosen, phrase=phrase, emphasis=options.emphasis)
            console.print(f"head only: {tune.validate(model, validation_set, phrase)}")
        model = tune.train(
            model, training, work / "run", steps=options.steps, minutes=options.minutes,
            batch=options.batch, lora=options.lora, peak=options.rate, held_out=validation_set, phrase=phrase,
            emphasis=options.emphasis, rows=options.rows,
            texts=_plain(options, work, tokens, found.config.context) if options.rows else None,
        )  # fmt: skip
        if Peers().rank:
            return  # the first process of the run writes the result
        result = tune.validate(model, validation_set, phrase)
        train.publish(model.half(), tokens, work / "model")
        console.print(f"validation {result}; the model is in {work / 'model'}")


def llama(options: Any, tokenizer: Any) -> GPT:
    """A decoder of the options' shape with random weights."""
    import torch

    from studio_gpt import config
    from studio_gpt.model import GPT

    hidden = max(64, options.width * 5 // 2 // 64 * 64)
    shape = config.llama(vocab=tokenizer.get_vocab_size(), context=options.context, layers=options.layers,
                         heads=options.heads, width=options.width, hidden=hidden)  # fmt: skip
    return GPT(shape).initialise(torch.Generator().manual_seed(0))


def _samples(path: Path, tokens: Any, context: int, console: studio.Console) -> list[Any]:
    """The conversations of a JSONL file that fit the context."""
    from studio_gpt import tune

    made = [tune.sample(messages, tokens, context) for messages in tune.read(path)]
    samples = [each for each in made if each is not None]
    console.print(f"{path}: {len(samples):,} conversations; {len(made) - len(samples):,} exceed the context length")
    return samples


def _plain(options: Any, work: Path, tokens: Any, context: int) -> Any:
    """The token file of the plain text for `gpt-chat`, written at the start."""
    from studio.training.agreement import agree, fingerprint
    from studio.training.peers import Peers
    from studio_gpt import corpus

    path = work / "tokens.bin"
    with Peers().first_alone():
        files = corpus.text_files(options.texts)
        fixed = {"texts": fingerprint(*files), "tokenizer": fingerprint(tokens.tokenizer.to_str())}
        if not Peers().rank and not agree(work, fixed, begun=False):
            path.unlink(missing_ok=True)
        if not path.exists():
            corpus.encode(corpus.blocks(files), tokens.tokenizer, path)
    return corpus.TokenFile(path, tokens.tokenizer.get_vocab_size(), context)


def _tokenizer(files: list[Path], work: Path, options: Any) -> Any:
    """The BPE tokenizer of this run, trained at the start."""
    from studio.loaders import tokenizer_json
    from studio_gpt import corpus

    path = work / "tokenizer.json"
    if not path.exists():
        made = corpus.train_tokenizer(corpus.blocks(files), options.vocab)
        make_folder(work)
        write_atomically(path, made.to_str(pretty=True).encode())
    return tokenizer_json.load(path)
