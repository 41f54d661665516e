"""SmolLM2-135M-Instruct by precision of weights: tokens per second, prefill time, and the loss by quantization.

    studio models pull smollm2
    python benchmarks/text_smollm2.py                     # all
    python benchmarks/text_smollm2.py --kinds int8        # one kind
    python benchmarks/text_smollm2.py --peer              # and transformers reading the same file (extra `accelerate`)

The held-out text is three of these documents, in windows of 512 tokens; the answers are greedy. The starter's
perplexity is for the same text, which is unlike its training data.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

import studio
from studio import models
from studio.devices import torch_setup
from studio_gpt.decoding import TextModel
from studio_gpt.kv_cache import ContiguousKVCache, Segment
from studio_gpt.model import GPT
from studio_gpt.perplexity import PerplexityGenerator
from studio_gpt.quantized_linear import KINDS, size
from studio_gpt.text import STARTER

DOCS = Path(__file__).parents[1] / "docs"
TEXT = "".join((DOCS / name).read_text("utf-8") for name in ("engine.md", "attention.md", "plugins.md"))[:20_000]
PREFILL, WINDOW, NEW = 512, 512, 64


def speeds(gpt: GPT, tokens: list[int], rounds: int) -> tuple[float, float]:
    """Tokens a second after a short prompt, and seconds to read `PREFILL` tokens in chunks as the generator does."""
    rates, reads = [], []
    for turn in range(rounds + 1):
        cache = ContiguousKVCache(gpt.config, PREFILL + NEW, gpt.embed.weight.dtype, torch.device("cpu"))
        begun = time.perf_counter()
        for at in range(0, PREFILL, 256):
            gpt.decode([Segment(tokens[at : at + 256], at, cache, num_logits=int(at + 256 == PREFILL))])
        read = time.perf_counter() - begun
        begun, given = time.perf_counter(), tokens[:16]
        start = 0
        for _ in range(NEW):
            given, start = [int(gpt.decode([Segment(given, start, cache)])[-1].argmax())], start + len(given)
        if turn:
            rates.append(NEW / (time.perf_counter() - begun))
            reads.append(read)
    return statistics.median(rates), statistics.median(reads)


def perplexity(path: Path, kind: str) -> tuple[TextModel, dict[str, float]]:
    """The model, and its perplexity on the text with what belongs to it."""
    generator = PerplexityGenerator(path)
    model = generator.load(studio.ModelRef(variant=kind), "cpu", "float32")
    window = min(WINDOW, model.config.context)
    state = generator.start(model, generator.Inputs.parse({"text": TEXT, "window": window}), studio.Rng(0))
    while not state.done:
        (state,) = generator.step(model, [state])
    return model, json.loads(str(generator.finish(model, state)))


def peer(path: Path, tokens: list[int]) -> float:
    """The same windows by transformers' own loss, in float32."""
    from transformers import AutoModelForCausalLM

    more = {"gguf_file": path.name} if path.is_file() else {}
    theirs = AutoModelForCausalLM.from_pretrained(path.parent if more else path, dtype=torch.float32, **more).eval()
    window = min(WINDOW, theirs.config.max_position_embeddings)
    nats, scored = 0.0, 0
    for at in range(0, len(tokens), window):
        part = torch.tensor([tokens[at : at + window]])
        if (count := part.shape[1] - 1) > 0:
            nats, scored = nats + float(theirs(part, labels=part).loss) * count, scored + count
    return float(torch.tensor(nats / scored).exp())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=tuple(KINDS), default=tuple(KINDS))
    parser.add_argument("--peer", action="store_true", help="transformers' perplexity of the same text too")
    parser.add_argument("--rounds", type=int, default=3, help="rounds that count (3)")
    given = parser.parse_args()
    torch_setup.prepare()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {given.rounds} rounds, medians\n")
    print(f"| model | weights | MB | tokens/s | prefill of {PREFILL}, s | perplexity | over loaded |")
    print("|---|---|---|---|---|---|---|")
    with torch.inference_mode():
        for name, path in (("SmolLM2-135M", models.path("smollm2")), ("starter", STARTER)):
            due, tokens = 0.0, []
            for kind in given.kinds:
                model, told = perplexity(path, kind)
                tokens = model.tokens.encode(TEXT)
                rate, read = speeds(model.gpt, tokens, given.rounds) if name != "starter" else (0.0, 0.0)
                due = due or told["perplexity"]
                shown = f"{rate:.1f} | {read:.2f}" if rate else " | "
                over = f"{told['perplexity'] / due - 1:+.2%}"
                print(
                    f"| {name} | {kind} | {size(model.gpt) / 1e6:.0f} | {shown} | {told['perplexity']:.4f} | {over} |",
                    flush=True,
                )
            if given.peer:
                print(f"| {name} | transformers, float32 | | | | {peer(path, tokens):.4f} | |", flush=True)


if __name__ == "__main__":
    main()
