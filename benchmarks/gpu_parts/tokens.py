"""Speed of texts and attention on a GPU: decoding by width, windows in space and time, and many shapes for flex."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import torch

from gpu_parts.bench import Bench, Found, error_of, generators
from studio.attention import Dispatch, Problem, SpaceTime
from studio.attention.bias import Bias
from studio.testing.subject import Subject


def text(bench: Bench, found: Found) -> None:
    """GPT-2 124M (random), 512 tokens in the cache: tokens a second by how many write together."""
    with tempfile.TemporaryDirectory() as folder:
        words = bench.of(50257, 300)
        _gpt(Path(folder), words, bench.of(12, 2), bench.of(768, 64))
        prompt = " ".join(f"w{i % words}" for i in range(bench.of(512, 20)))
        given = {"prompt": prompt, "model": folder, "max_tokens": bench.of(200, 12)}
        subject = Subject(generators()["text"], given, bench.device.name, bench.device.fast_dtype())
        for width in bench.of((1, 8, 32, 128), (1, 2)):
            states = [subject.start(seed) for seed in range(width)]
            while min(state.position for state in states) < bench.of(6, 2):  # the prompt has been read by then
                states = subject.step(states)
            line = bench.with_and_without_graphs(partial(subject.step, states))
            found[str(width)] = {**line, "tokens_s": round(width / line["run"] * 1e3)}
        found["not_recorded"] = bench.device.not_recorded


def _gpt(folder: Path, words: int, layers: int, width: int) -> None:
    """A decoder of random weights and a tokenizer of numbered words, as transformers has them."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    from studio_gpt.config import Config
    from studio_gpt.load import save
    from studio_gpt.model import GPT

    torch.manual_seed(0)
    save(GPT(Config(vocab=words, layers=layers, heads=width // 64, width=width)), folder)
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(words)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


def windows(bench: Bench, found: Found) -> None:
    """16,384 tokens in space and time, 8 heads of 64: everything seen, and windows, by backend; the first call apart,
    in which flex compiles.
    """
    grid = bench.of((16, 32, 32), (2, 8, 8))
    q, k, v = (bench.randn(1, grid[0] * grid[1] * grid[2], 8, 64, seed=seed) for seed in range(3))
    spans = bench.of({"eighth": (8, 16, 16), "twentieth": (6, 12, 11)}, {"eighth": (2, 4, 4)})
    dispatch = Dispatch()
    for kind, bias in {"full": None, **{name: SpaceTime(grid, span) for name, span in spans.items()}}.items():
        for name, reasons in dispatch.explain(Problem.of(q, k, v, bias)).items():
            if reasons or name in bench.of(("reference",), ("reference", "flex")):  # flex takes long to compile
                continue

            def work(name: str = name, bias: Bias | None = bias) -> torch.Tensor:
                return dispatch.attend(q, k, v, bias=bias, backend=name)

            first = bench.seconds(work)
            found[f"{kind}_{name}"] = {"first_s": round(first, 3), **bench.timed(work, 5)}


def shapes(bench: Bench, found: Found) -> None:
    """More shapes than the eight for which torch compiles one function: each is to be compiled by flex, and none to
    fall back to the formula, which writes all scores out (`scores` are its bytes).
    """
    from torch._dynamo.utils import counters

    dispatch, backend, probe = Dispatch(), bench.of("flex", "sdpa-flash"), bench.device.memory_probe()
    for frames in range(2, bench.of(12, 4)):
        grid = (frames, 16, 16)
        q, k, v = (bench.randn(1, frames * 256, 8, 64, seed=seed) for seed in range(3))
        bias = bench.of(SpaceTime(grid, (2, 8, 8)), None)
        due = dispatch.attend(*(each.double() for each in (q, k, v)), bias=bias, backend="reference")

        def work(q: torch.Tensor = q, k: torch.Tensor = k, v: torch.Tensor = v, b: Bias | None = bias) -> torch.Tensor:
            return dispatch.attend(q, k, v, bias=b, backend=backend)

        first = bench.seconds(work)
        probe.begin()
        line = bench.timed(work, 3)
        found[str(frames * 256)] = {
            "first_s": round(first, 3), **line, "peak": probe.peak(), "scores": 8 * q.dtype.itemsize * q.shape[1] ** 2,
            "apart": error_of(work, due), "compiled": counters["stats"]["unique_graphs"],
        }  # fmt: skip
