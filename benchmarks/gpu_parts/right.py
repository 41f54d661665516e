"""Whether everything is right on a GPU: outputs, waits, tests, attention's backends, and a device that is lost."""

from __future__ import annotations

import subprocess
import sys
from itertools import product
from typing import Any

import torch

import studio
from gpu_parts.bench import PLUGIN, REPOSITORY, Bench, Found, error_of, generators
from studio.attention import Causal, Dense, Dispatch, Lengths, Problem
from studio.engine import Engine, Request
from studio.generator import Generator
from studio.media import Media
from studio.testing.subject import Subject, apart


def facts(bench: Bench, found: Found) -> None:
    """What it is, and its two ceilings: bytes copied on the device (read and written), and products in its dtype."""
    device = bench.device
    found |= {"device": device.label, "versions": {"torch": torch.__version__, **device.versions()}}
    found |= {"dtype": device.fast_dtype(), "float32": device.float32, "built_for": torch.cuda.get_arch_list()}
    found |= {"memory_free": device.free_memory(), "memory_total": device.total_memory()}
    x = torch.ones(bench.of(4 << 30, 1 << 16), dtype=torch.uint8, device=device.name)
    y = torch.empty_like(x)
    found["copy_gb_s"] = round(2 * x.nbytes / bench.timed(lambda: y.copy_(x))["run"] / 1e6, 1)
    side = bench.of(8192, 64)
    a = bench.randn(side, side)
    found["matmul_tflops"] = round(2 * side**3 / bench.timed(lambda: a @ a)["run"] / 1e9, 1)
    small = bench.randn(64, 64)
    found["small_launch_us"] = bench.timed(lambda: [small.add_(1) for _ in range(1000)], 3)["run"]


def correct(bench: Bench, found: Found) -> None:
    """The built-in generators, two requests at unlike positions, beside the CPU; and the same seed twice."""
    known = generators()
    for name, given in bench.cases().items():
        due = _walk(Subject(known[name], given, "cpu", "float32"))
        exact = Subject(known[name], given, bench.device.name, "float32")
        made, again = _walk(exact), _walk(exact)
        fast = _walk(Subject(known[name], given, bench.device.name, bench.device.fast_dtype()))
        found[name] = {
            "float32_apart": max(map(apart, due, made)), "fast_apart": max(map(apart, due, fast)),
            "same_bytes": [each.sha256 for each in made] == [each.sha256 for each in again],
        }  # fmt: skip


def _walk(subject: Subject) -> list[Media]:
    """Start two, step the first, then whichever may together, and finish both."""
    states = [subject.start(0), subject.start(1)]
    states[:1] = subject.step(states[:1])
    while live := [i for i in (0, 1) if not states[i].done]:
        keys = {subject.generator.batch_key(states[i]) for i in live}
        chosen = live if len(keys) == 1 else live[:1]
        for i, state in zip(chosen, subject.step([states[i] for i in chosen]), strict=True):
            states[i] = state
    return [subject.finish([state])[0] for state in states]


def waits(bench: Bench, found: Found) -> None:
    """The lines at which a step of two requests waits for the device, as torch warns of them. On the fake GPU text
    waits once, and dcgan twice, to read what was made.
    """
    known = generators()
    for name, given in bench.cases().items():
        subject = Subject(known[name], given, bench.device.name, bench.device.fast_dtype())
        states = [subject.start(0), subject.start(1)]
        after = subject.step(states)
        states = states if any(state.done for state in after) else after
        for _ in range(bench.of(5, 1)):  # kernels are chosen, graphs recorded
            subject.step(states)
        with bench.waits() as lines:
            subject.step(states)
        found[name] = lines


def tests(bench: Bench, found: Found) -> None:
    """The tests that need a card, in a process of their own: what pytest says last, and which failed."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider",
               "tests/studio/devices/test_card.py"]  # fmt: skip
    told = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    lines = [line for line in told.stdout.splitlines() if line.strip()] or told.stderr.splitlines()[-1:]
    found |= {"status": told.returncode, "said": lines[-1] if lines else ""}
    found["failed"] = [line[:300] for line in lines if line.startswith(("FAILED", "ERROR"))]


def attention(bench: Bench, found: Found) -> None:
    """Each backend refuses a problem or serves it rightly: sizes of heads, dtypes, biases, grouped heads."""
    dispatch, wrong = Dispatch(), []
    tokens, right, refused = bench.of(256, 16), 0, 0
    sizes = bench.of((32, 40, 64, 80, 128, 160, 256, 512), (32, 512))
    dtypes = bench.of((torch.bfloat16, torch.float16, torch.float32), (torch.float32,))
    shapes: dict[str, tuple[int, Any]] = {
        "open": (tokens, None), "causal": (tokens, Causal()), "oblong": (tokens + 72, Causal()),
        "lengths": (tokens, Lengths([tokens // 2, tokens])),
        **{name: (tokens, Dense(torch.ones(tokens, tokens, device=bench.device.name).tril(-unseen).bool()))
           for name, unseen in (("mask", 0), ("blind", 3))},  # the first three queries of `blind` see nothing
    }  # fmt: skip
    for dim, dtype, (kind, (keys, bias)), groups in product(sizes, dtypes, shapes.items(), (8, 2)):
        q, k, v = (bench.randn(2, n, h, dim, dtype=dtype, seed=s)
                   for s, (n, h) in enumerate(((tokens, 8), (keys, groups), (keys, groups))))  # fmt: skip
        due = dispatch.attend(*(each.double() for each in (q, k, v)), bias=bias, backend="reference")
        for name, reasons in dispatch.explain(Problem.of(q, k, v, bias)).items():
            if reasons or name == "flex":  # flex compiles each: see `windows`
                refused += 1
                continue
            off = error_of(lambda n=name, x=(q, k, v), b=bias: dispatch.attend(*x, bias=b, backend=n), due)
            within = isinstance(off, float) and off <= (2e-2 if dtype != torch.float32 else 1e-4)
            right += within
            wrong += [] if within else [[name, kind, dim, str(dtype), groups, off]]
    found |= {"right": right, "refused": refused, "wrong": wrong}


def failures(bench: Bench, found: Found) -> None:
    """An illegal index in a process of its own: what the engine says, and that the next process is well."""
    found["said"] = bench.child("lose", bench.of(60, 300))[-400:]
    found["well_after"] = float((bench.randn(8, 8) @ bench.randn(8, 8)).isfinite().all())


class Illegal(Generator):
    """Index beyond the end."""

    name, output = "illegal", studio.Text

    def generate(self, model: Any, inputs: Any, rng: Any) -> Media:
        table, places = torch.ones(4, device=model), torch.full((2,), 9, device=model)
        return studio.Text(str(table[places].tolist()))

    def load(self, ref: studio.ModelRef, device: str, dtype: str) -> str:
        return device


def lose(bench: Bench) -> str:
    """What two requests are told when the first breaks the device."""
    generator, told = Illegal(), []
    with Engine(bench.device.name) as engine:
        tickets = [engine.submit(Request.of(generator, generator.Inputs(), seed=i, plugin=PLUGIN)) for i in (1, 2)]
        for ticket in tickets:
            try:
                told.append(str(ticket.result(30)))
            except studio.StudioError as error:
                told.append(f"{type(error).__name__}: {error}")
    return " | ".join(told)
