"""Sixteen texts of different lengths that arrive one after another: ours, sequential and concurrent, and peers.

    python benchmarks/text_together.py                          # every side
    python benchmarks/text_together.py --sides ours-float16     # one of them

A GPT-2 124M with random weights; prompts of 8 to 64 tokens, 16 to 96 new ones. Ours arrive 50 ms apart, through
`Studio`, including recipes and store; peers get all at once, which favours them. Each side runs in a separate process,
one after another, after a warm-up run. Tokens per second count the requested tokens.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from text import stock

from studio.devices import torch_setup
from studio_gpt.config import Config
from studio_gpt.load import save
from studio_gpt.model import GPT

COUNT, APART_S = 16, 0.05
KINDS = ("loaded", "float16", "int8", "int8-dynamic")
SIDES = (
    *(f"ours-{kind}" for kind in KINDS),
    "transformers-alone",
    "transformers-static-batch",
    "transformers-continuous",
)
Asked = list[tuple[list[int], int]]  # the prompt's tokens, and how many new ones
Timed = dict[str, tuple[float, int]]  # seconds, and requests whose texts are those of the other way


def asked() -> Asked:
    """The same sixteen requests each time."""
    draw = random.Random(0)
    return [
        ([draw.randrange(1, 50257) for _ in range(draw.randint(8, 64))], draw.randint(16, 96)) for _ in range(COUNT)
    ]


def source() -> GPT:
    """Random weights, the same each time."""
    return GPT(Config(vocab=50257)).initialise(torch.Generator().manual_seed(0)).eval()


def ours(kind: str, folder: Path) -> Timed:
    """One after another, and together; what is written is compared."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    from studio import Studio

    save(source(), folder / "model")
    tokenizer = Tokenizer(models.WordLevel({f"t{n}": n for n in range(50257)}, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "model" / "tokenizer.json"))
    with Studio(home=folder / "home", device="cpu") as studio:

        def submit(tokens: list[int], new: int) -> object:
            prompt = " ".join(f"t{n}" for n in tokens)
            model = str(folder / "model")
            return studio.submit(
                "text", seed=0, prompt=prompt, model=model, weights=kind, max_tokens=new, temperature=0, client="one"
            )

        def alone(requests: Asked) -> list[str]:
            return [str(submit(*each).result()) for each in requests]  # type: ignore[attr-defined]

        def together(requests: Asked) -> list[str]:
            tickets = []
            for each in requests:
                tickets.append(submit(*each))
                time.sleep(APART_S)
            return [str(ticket.result()) for ticket in tickets]  # type: ignore[attr-defined]

        together(asked())  # widths and threads are learnt
        together(asked())
        made: dict[str, list[str]] = {}
        timed: Timed = {}
        for name, work in (("alone", alone), ("together", together)):
            begun = time.perf_counter()
            made[name] = work(asked())
            same = sum(a == b for a, b in zip(made[name], made["alone"], strict=True))
            timed[name] = time.perf_counter() - begun, same
        return timed


def transformers(way: str) -> Timed:
    """One of three ways to generate the same."""
    from transformers import GenerationConfig

    model, requests = stock(source()), asked()

    def generate(rows: torch.Tensor, mask: torch.Tensor, new: int) -> None:
        model.generate(
            rows, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0
        )

    def alone() -> None:
        for tokens, new in requests:
            rows = torch.tensor([tokens])
            generate(rows, torch.ones_like(rows), new)

    def static_batch() -> None:
        longest = max(len(tokens) for tokens, _ in requests)
        rows = torch.tensor([[0] * (longest - len(tokens)) + tokens for tokens, _ in requests])
        mask = torch.tensor([[0] * (longest - len(tokens)) + [1] * len(tokens) for tokens, _ in requests])
        generate(rows, mask, max(new for _, new in requests))

    def continuous() -> None:
        config = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=96)
        manager = model.init_continuous_batching(generation_config=config)
        manager.start()
        for tokens, new in requests:
            manager.add_request(tokens, max_new_tokens=new)
        left = COUNT
        while left:
            result = manager.get_result(timeout=1)
            left -= result is not None and result.is_finished()
        manager.stop(block=True)

    work: Callable[[], None] = {"alone": alone, "static-batch": static_batch, "continuous": continuous}[way]
    if way == "static-batch":
        generate(torch.tensor([[1, 2, 3]] * COUNT), torch.ones(COUNT, 3, dtype=torch.long), 4)
    begun = time.perf_counter()
    with torch.inference_mode():
        work()
    return {way: (time.perf_counter() - begun, 0)}


def serve(side: str, pipe: Connection) -> None:
    """A process for one side."""
    torch_setup.prepare()
    whose, _, what = side.partition("-")
    with tempfile.TemporaryDirectory() as folder:
        pipe.send(ours(what, Path(folder)) if whose == "ours" else transformers(what))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    chosen = parser.parse_args().sides
    tokens = sum(new for _, new in asked())
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; {COUNT} requests, {tokens} new tokens\n")
    print("| side | seconds | tokens/s | over alone | equal to alone |\n|---|---|---|---|---|")
    spawning = multiprocessing.get_context("spawn")
    for side in chosen:
        here, there = spawning.Pipe()
        child = spawning.Process(target=serve, args=(side, there))
        child.start()
        there.close()
        timed: Timed = here.recv()
        child.join()
        for way, (seconds, same) in timed.items():
            name = f"{side}, {way}" if side.startswith("ours") else side
            over = f"{timed['alone'][0] / seconds:.2f} | {same}" if side.startswith("ours") else "|"
            print(f"| {name} | {seconds:.1f} | {tokens / seconds:.1f} | {over} |", flush=True)


if __name__ == "__main__":
    main()
