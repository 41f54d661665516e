"""Text at batch size 1: our decoder compared with transformers and CTranslate2, and the memory speed of one-row
products.

    python benchmarks/text.py --products           # each kernel of studio_gpt.quantized_linear at 1 to 64 rows
    python benchmarks/text.py                      # 128 new tokens of a GPT-2 124M with random weights, alternately
    python benchmarks/text.py --compiled           # and transformers' compiled static cache, which takes a minute more
    python benchmarks/text.py --profile int8       # where the time of a step goes

CTranslate2 is skipped if it is not installed (``pip install .[benchmarks]``). The limit of a row is the time to read
all its weights once per token, at the speed of a streaming read that is measured in the same run.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor, nn
from turns import by_turns

from studio.devices import torch_setup
from studio_gpt.config import Config
from studio_gpt.kv_cache import ContiguousKVCache, Segment
from studio_gpt.model import GPT
from studio_gpt.quantized_linear import KINDS, kernel_summary, quantize, size

torch_setup.prepare()

Making = Callable[[int], list[int]]
PROMPT = list(range(100, 116))
SHAPES = {"qkv": (2304, 768, 12), "out": (768, 768, 12), "up": (3072, 768, 12), "down": (768, 3072, 12)}
HEAD = (50257, 768, 1)


def streaming(rounds: int = 7) -> float:
    """Bytes a second that a sum over 256 MiB reads."""
    numbers = torch.ones(64 << 20)
    return numbers.nbytes / min(by_turns({"read": lambda: numbers.sum()}, rounds)["read"])


def products(rounds: int) -> None:
    """All matrix products of one GPT-2 124M step, kernel by kernel, with weights that no cache holds."""
    torch.manual_seed(0)
    speed = streaming()
    print(f"streaming read {speed / 1e9:.1f} GB/s\n")
    print("| weights | kernel | MB | steps/s, 1 row | of the limit | rows/s at 4 | at 16 | at 64 |")
    print("|---|---|---|---|---|---|---|---|")
    for kind in ("linear", "bfloat16", *KINDS):
        layers = nn.Sequential()
        for outputs, inputs, count in (*SHAPES.values(), HEAD):
            layers.extend(nn.Linear(inputs, outputs, bias=False) for _ in range(count))
        dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
        layers.to(dtype)
        if kind in KINDS:
            quantize(layers, kind)
        given = {rows: {n: torch.randn(rows, n).to(dtype) for n in (768, 3072)} for rows in (1, 4, 16, 64)}
        inputs = [n for _, n, count in (*SHAPES.values(), HEAD) for _ in range(count)]

        def step(rows: int) -> None:
            for layer, n in zip(layers, inputs, strict=True):  # noqa: B023 (called at once)
                layer(given[rows][n])  # noqa: B023

        taken = {r: statistics.median(by_turns({"x": lambda r=r: step(r)}, rounds)["x"]) for r in given}
        held = size(layers)
        limit = held / speed
        others = " | ".join(f"{rows / taken[rows]:.0f}" for rows in (4, 16, 64))
        share = f"{limit / taken[1]:.0%}"
        print(f"| {kind} | {kernel_summary(layers)} | {held / 1e6:.0f} | {1 / taken[1]:.0f} | {share} | {others} |")
    print()


class Ours:
    """Our decoder, greedy, with one kind of weights."""

    def __init__(self, weights: str, source: GPT) -> None:
        self.model = GPT(source.config).eval()
        self.model.load_state_dict(source.state_dict())
        quantize(self.model, weights)
        # What a token reads: all but the embeddings, of which it takes a row; a tied one is read by the head.
        self.read = size(self.model) - self.model.places.weight.nbytes
        if self.model.embed.weight is not getattr(self.model.head, "weight", None):
            self.read -= self.model.embed.weight.nbytes

    def __call__(self, new: int) -> list[int]:
        cache = ContiguousKVCache(self.model.config, len(PROMPT) + new, torch.float32, torch.device("cpu"))
        made: list[int] = []
        tokens = PROMPT
        while True:
            start = len(PROMPT) + len(made) - 1 if made else 0
            made.append(int(self.model.decode([Segment(tokens, start, cache)])[-1].argmax()))
            if len(made) == new:
                return made
            tokens = made[-1:]


def stock(source: GPT) -> nn.Module:
    """The same weights in transformers' module."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config()).eval()
    theirs = model.transformer
    with torch.no_grad():
        theirs.wte.weight.copy_(source.embed.weight)
        theirs.wpe.weight.copy_(source.places.weight)
        pairs = [(theirs.ln_f, source.norm)]
        for one, block in zip(theirs.h, source.blocks, strict=True):
            pairs += [(one.ln_1, block.norm_1), (one.ln_2, block.norm_2), (one.attn.c_attn, block.qkv)]
            pairs += [(one.attn.c_proj, block.out), (one.mlp.c_fc, block.up), (one.mlp.c_proj, block.down)]
        for mine, its in pairs:
            mine.weight.copy_(its.weight.t() if its.weight.dim() == 2 else its.weight)
            mine.bias.copy_(its.bias)
    return model


def generate(model: nn.Module, new: int, **more: object) -> list[int]:
    given = torch.tensor([PROMPT])
    made: Tensor = model.generate(
        given, attention_mask=torch.ones_like(given), max_new_tokens=new, min_new_tokens=new, do_sample=False,
        pad_token_id=0, **more,
    )  # fmt: skip
    return made[0, len(PROMPT) :].tolist()


def ctranslate2(model: nn.Module, folder: Path) -> dict[str, Making]:
    """CTranslate2's generator in float32 and int8, from the same weights by its own converter."""
    import ctranslate2
    from ctranslate2.converters import TransformersConverter
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = [f"t{n}" for n in range(model.config.vocab_size)]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="t0"))
    model.save_pretrained(folder / "stock")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="t0", bos_token="t0", eos_token="t0", pad_token="t0"
    ).save_pretrained(folder / "stock")
    TransformersConverter(str(folder / "stock")).convert(str(folder / "ct2"))
    works: dict[str, Making] = {}
    prompt = [words[n] for n in PROMPT]
    for kind in ("float32", "int8"):
        generator = ctranslate2.Generator(
            str(folder / "ct2"), compute_type=kind, intra_threads=torch.get_num_threads(), inter_threads=1
        )

        def work(new: int, generator: object = generator) -> list[int]:
            made = generator.generate_batch(  # type: ignore[attr-defined]
                [prompt], max_length=new, min_length=new, sampling_topk=1, include_prompt_in_result=False
            )
            return list(made[0].sequences_ids[0])

        works[f"CTranslate2 {kind}"] = work
    return works


def ours(source: GPT) -> tuple[dict[str, Making], dict[str, int]]:
    """Our decoder with each kind of weights, and how many bytes of them a token reads."""
    kinds = {f"ours {kind}": Ours(kind, source) for kind in KINDS}
    return dict(kinds), {name: each.read for name, each in kinds.items()}


def transformers(source: GPT, compiled: bool) -> dict[str, Making]:
    """Generation by transformers in float32 and bfloat16, with each of its caches."""
    from transformers import CompileConfig

    everywhere = CompileConfig()
    everywhere._compile_all_devices = True  # else `generate` leaves it out on a CPU and says nothing
    works: dict[str, Making] = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        model = stock(source).to(dtype)
        works[f"transformers {name}, default"] = partial(generate, model)
        works[f"transformers {name}, static"] = partial(
            generate, model, cache_implementation="static", disable_compile=True
        )
        if compiled:
            works[f"transformers {name}, compiled"] = partial(
                generate, model, cache_implementation="static", compile_config=everywhere
            )
    return works


def serve(peer: str, compiled: bool, pipe: Connection) -> None:
    """A process of its own for each peer: say what there is to time, then time what is asked for until None is."""
    source = GPT(Config(vocab=50257)).initialise(torch.Generator().manual_seed(0)).eval()
    read: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        if peer == "ours":
            works, read = ours(source)
        elif peer == "transformers":
            works = transformers(source, compiled)
        else:
            works = ctranslate2(stock(source), Path(folder))
        pipe.send({name: read.get(name, 0) for name in works})
        while (asked := pipe.recv()) is not None:
            name, new = asked
            begun = time.perf_counter()
            made = works[name](new)
            pipe.send((time.perf_counter() - begun, made))


def generation(new: int, rounds: int, compiled: bool) -> None:
    """The whole of greedy generation, every peer by turns, each in its own process.

    In one process their pools of threads wait for each other: CTranslate2's took a third to a half of our speed.
    """
    peers = ["ours", "transformers", *(["ctranslate2"] if importlib.util.find_spec("ctranslate2") else [])]
    speed = streaming()
    spawning = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    children = []
    read: dict[str, int] = {}
    for peer in peers:
        here, there = spawning.Pipe()
        children.append(spawning.Process(target=serve, args=(peer, compiled, there)))
        children[-1].start()
        offered = here.recv()
        read |= offered
        pipes |= dict.fromkeys(offered, here)
    taken: dict[str, list[float]] = {name: [] for name in pipes}
    made: dict[str, list[int]] = {}
    for turn in range(rounds + 1):
        for name in sorted(pipes, reverse=bool(turn % 2)):
            pipes[name].send((name, new))
            seconds, made[name] = pipes[name].recv()
            if turn:
                taken[name].append(seconds)
            time.sleep(0.3)  # until the threads of the last one sleep
    for pipe in set(pipes.values()):
        pipe.send(None)
    for child in children:
        child.join()
    report(new, taken, made, read, speed)


def report(
    new: int, taken: dict[str, list[float]], made: dict[str, list[int]], read: dict[str, int], speed: float
) -> None:
    rates = {name: new / statistics.median(each) for name, each in taken.items()}
    print(f"streaming read {speed / 1e9:.1f} GB/s; batch 1, {new} new tokens after {len(PROMPT)}\n")
    print("| | tokens/s (median) | best round | of the limit | first tokens equal to transformers float32 |")
    print("|---|---|---|---|---|")
    due = made["transformers float32, default"]
    for name, rate in rates.items():
        limit = f"{rate * read[name] / speed:.0%}" if read[name] else ""
        same = next((n for n, (a, b) in enumerate(zip(made[name], due, strict=True)) if a != b), new)
        print(f"| {name} | {rate:.1f} | {new / min(taken[name]):.1f} | {limit} | {same} |")
    best = {
        kind: max((n for n in rates if n.startswith(f"transformers {kind}")), key=rates.__getitem__)
        for kind in ("float32", "bfloat16")
    }
    pairs = [("ours loaded", best["float32"]), ("ours float16", best["bfloat16"])]
    pairs += [("ours loaded", "CTranslate2 float32"), ("ours int8", "CTranslate2 int8")]
    pairs += [("ours int8-dynamic", "CTranslate2 int8")]
    print("\n| ratio of medians | |\n|---|---|")
    for a, b in pairs:
        if b in rates:
            print(f"| {a} over {b} | {rates[a] / rates[b]:.2f} |")
    print()


def profiled(kind: str) -> None:
    """Operators of 64 steps by their own time."""
    source = GPT(Config(vocab=50257)).initialise(torch.Generator().manual_seed(0)).eval()
    ours = Ours(kind, source)
    ours(8)
    with torch.profiler.profile() as profile:
        ours(64)
    print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=22, max_name_column_width=48))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--products", action="store_true", help="only the matrix products")
    parser.add_argument("--profile", choices=tuple(KINDS), help="only where the time of a step goes")
    parser.add_argument("--compiled", action="store_true", help="transformers' compiled cache too")
    parser.add_argument("--new", type=int, default=128, help="new tokens (128)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds that count (3)")
    asked = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {asked.rounds} rounds\n")
    with torch.inference_mode():
        if asked.profile:
            profiled(asked.profile)
        elif asked.products:
            products(asked.rounds)
        else:
            generation(asked.new, asked.rounds, asked.compiled)


if __name__ == "__main__":
    main()
