"""Attention on this machine, compared with kernels that are called directly, and with other libraries' dispatch.

    python benchmarks/attention.py                      # all parts, as Markdown
    python benchmarks/attention.py grid windows         # some of them
    python benchmarks/attention.py grid --quick         # smaller shapes, fewer rounds

Parts: `choosing` `grid` `windows` `bound` `packing` `decoding` `memory`. The entries of a table are measured
alternately, and ratios are medians over rounds, so that other load affects all alike. Peers: torch's own
dispatch, diffusers' `dispatch_attention_fn`, xformers' `memory_efficient_attention` (its error is printed if it
has no kernel), compiled FlexAttention (forward only; skipped if it cannot be compiled).
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from turns import Work, by_turns

from studio.attention import Blocks, Causal, Dispatch, KVCache, Lengths, Problem, SpaceTime
from studio.attention.backends.sdpa import flash_cpu
from studio.attention.plan import Cut, cuts
from studio.devices import torch_setup

torch_setup.prepare()

HEADS, DIM = 8, 64
LONG_ENOUGH = 600.0  # ms for each kernel of the grid
SHAPES = ((2, 256, 8, 64), (1, 1024, 8, 64), (1, 2048, 8, 64), (4, 512, 12, 64), (1, 1024, 16, 128))
WINDOWS = (
    SpaceTime((8, 24, 24), (6, 12, 16), (2, 4, 8)),
    SpaceTime((8, 24, 24), (4, 16, 8), (4, 8, 8)),
    SpaceTime((8, 24, 24), (5, 15, 15)),
    SpaceTime((8, 24, 24), (4, 12, 12)),
    SpaceTime((8, 32, 32), (4, 24, 24), (4, 8, 8)),
    SpaceTime((8, 32, 32), (4, 16, 16), (4, 8, 8)),
    SpaceTime((8, 32, 32), (5, 21, 20)),
    SpaceTime((8, 32, 32), (4, 16, 16)),
    SpaceTime((16, 32, 32), (12, 24, 16), (4, 8, 8)),
    SpaceTime((16, 32, 32), (8, 16, 16), (4, 8, 8)),
    SpaceTime((16, 32, 32), (10, 21, 20)),
    SpaceTime((16, 32, 32), (8, 16, 16)),
    SpaceTime((16, 32, 64), (12, 16, 48), (4, 8, 8)),
    SpaceTime((16, 32, 64), (8, 16, 32), (4, 8, 8)),
    SpaceTime((16, 32, 64), (10, 20, 42)),
    SpaceTime((16, 32, 64), (8, 16, 32)),
)
MIX = (4096, 2048, 1024, 512, 512, 256, 128, 64)  # tokens of eight sequences, mean 1,080


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def ratio(taken: dict[str, list[float]], a: str, b: str) -> float:
    """Median of a / b, round by round."""
    return statistics.median(x / y for x, y in zip(taken[a], taken[b], strict=True))


def middle(taken: dict[str, list[float]], name: str) -> float:
    """Median milliseconds."""
    return statistics.median(taken[name]) * 1000


def peers(given: tuple[Tensor, Tensor, Tensor], causal: bool) -> dict[str, Work]:
    """Other libraries' own choice of a kernel, for what all of them can be asked."""
    from diffusers.models.attention_dispatch import dispatch_attention_fn

    q, k, v = given
    wide = [each.transpose(1, 2) for each in given]
    found: dict[str, Work] = {
        "torch": lambda: scaled_dot_product_attention(*wide, is_causal=causal),
        "diffusers": lambda: dispatch_attention_fn(q, k, v, is_causal=causal),
    }
    if (ops := xformers()) is not None:
        mask = ops.LowerTriangularMask() if causal else None
        found["xformers"] = lambda: ops.memory_efficient_attention(q, k, v, attn_bias=mask)
    return found


@cache
def xformers() -> Any:
    """xformers' operators if they serve a small problem here; else says why not."""
    try:
        ops = importlib.import_module("xformers.ops")
        x = torch.zeros(1, 16, 2, 64)
        ops.memory_efficient_attention(x, x, x)
    except (ImportError, OSError, NotImplementedError, RuntimeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        print(f"xformers is no peer here: {type(error).__name__}: {'; '.join(lines[:12])}\n")
        return None
    return ops


def grid(dispatch: Dispatch, asked: argparse.Namespace) -> None:
    """Dispatch against every willing backend called directly, and against the peers."""
    xformers()
    print("| shape | bias | dtype | backend | ms | of the best called directly | to torch | diffusers | xformers |")
    print("|---|---|---|---|---|---|---|---|---|")
    worst = 0.0
    for shape in SHAPES[: 2 if asked.quick else None]:
        for bias in (None, Causal(offset=0), Causal(window=128)):
            for dtype in (torch.float32, torch.bfloat16):
                q, k, v = (drawn(*shape, dtype=dtype) for _ in range(3))
                worst = max(worst, one_shape(dispatch, (q, k, v), bias, asked.rounds))
    print(f"\nworst of those that take 0.5 ms or more: {worst:.3f} of the best\n")


def one_shape(dispatch: Dispatch, given: tuple[Tensor, Tensor, Tensor], bias: Causal | None, rounds: int) -> float:
    """Print a line; what dispatch took of the best, or 0 where it took less than half a millisecond."""
    q, k, v = given
    problem = Problem.of(q, k, v, bias)
    scale = problem.head_dim**-0.5
    served = dispatch.choose(problem).name
    able = [name for name, why in dispatch.explain(problem).items() if not why and name not in ("flex", "reference")]
    works: dict[str, Work] = {
        name: (lambda name=name: dispatch.backends[name].attend(q, k, v, problem, scale)) for name in able
    }
    works["attend"] = lambda: dispatch.attend(q, k, v, bias=bias)
    if bias is None or bias.window is None:
        works |= peers(given, bias is not None)
    once = middle(by_turns({"attend": works["attend"]}, 3), "attend")
    taken = by_turns(works, max(rounds, round(LONG_ENOUGH / once)))  # 3% of two milliseconds is below one round's noise
    best = min(able, key=lambda name: middle(taken, name))
    own = [f"{ratio(taken, 'attend', n):.3f}" if n in taken else "-" for n in ("torch", "diffusers", "xformers")]
    share = ratio(taken, "attend", best)
    print(
        f"| {'x'.join(map(str, q.shape))} | {bias or 'none'} | {problem.dtype_name} | {served} | "
        f"{middle(taken, 'attend'):.2f} | {share:.3f} ({best}) | {' | '.join(own)} |",
        flush=True,
    )
    return share if middle(taken, "attend") >= 0.5 else 0.0


def windows(dispatch: Dispatch, asked: argparse.Namespace) -> None:
    """3-D windows against unmasked flash, with the limit that the density allows, and against FlexAttention."""
    print("| grid | window | tile | density | flash, all pairs, ms | ms | speed-up | of the limit | flex, ms |")
    print("|---|---|---|---|---|---|---|---|---|")
    for bias in chosen(asked):
        tokens = prod(bias.grid)
        q, k, v = (drawn(1, tokens, HEADS, DIM) for _ in range(3))
        works: dict[str, Work] = {
            "flash": lambda: dispatch.attend(q, k, v, backend="sdpa-flash"),  # noqa: B023 (called at once)
            "ours": lambda: dispatch.attend(q, k, v, bias=bias),  # noqa: B023
        }
        if tokens <= 8192 and not dispatch.backends["flex"].refuses(Problem.of(q, k, v, bias)):
            works["flex"] = lambda: dispatch.attend(q, k, v, bias=bias, backend="flex")  # noqa: B023
        taken = by_turns(works, asked.rounds if tokens <= 8192 else 1)
        faster = ratio(taken, "flash", "ours")
        flex = f"{middle(taken, 'flex'):.0f}" if "flex" in taken else "-"
        sides = ["x".join(map(str, each)) if each else "-" for each in (bias.grid, bias.window, bias.tile)]
        flash, ours = middle(taken, "flash"), middle(taken, "ours")
        print(
            f"| {' | '.join(sides)} | {bias.density:.1%} | {flash:.0f} | {ours:.0f} | "
            f"{faster:.2f}x | {faster * bias.density:.0%} | {flex} |",
            flush=True,
        )
    print()


def chosen(asked: argparse.Namespace) -> list[SpaceTime]:
    """The windows that were asked for."""
    found = [bias for bias in WINDOWS if not asked.tokens or prod(bias.grid) in asked.tokens]
    return found[: 2 if asked.quick else None]


def bound(dispatch: Dispatch, asked: argparse.Namespace) -> None:
    """How near to the limit windows without tiles could come if copies, masks and starting a box cost nothing.

    A box of queries has to look at all keys that one of them sees, and the kernel's rate falls with the queries that
    share keys. Of all ways to cut that `plan` knows the best is taken, at rates that are measured here.
    """
    counts = (8, 16, 32, 64, 128, 256, 512, 1024)
    works: dict[str, Work] = {}
    for n in counts:
        q, k, v, mask = drawn(1, n, HEADS, DIM), *(drawn(1, HEADS, 1536, DIM) for _ in range(2)), torch.zeros(n, 1536)
        works[f"{n} unmasked"] = lambda q=q, k=k, v=v: flash_cpu(q.transpose(1, 2), k, v, None, False, 0.125)
        works[f"{n} masked"] = lambda q=q, k=k, v=v, mask=mask: flash_cpu(q.transpose(1, 2), k, v, mask, False, 0.125)
    taken = by_turns(works, 5 * asked.rounds)
    rates = {name: middle(taken, name) * 1e6 / (int(name.split()[0]) * 1536 * HEADS) for name in works}  # ns a pair
    print("| queries that share 1,536 keys | " + " | ".join(map(str, counts)) + " |")
    print("|---|" + "---|" * len(counts))
    for kind in ("unmasked", "masked"):
        print(f"| {kind}, ns per pair and head | " + " | ".join(f"{rates[f'{n} {kind}']:.2f}" for n in counts) + " |")
    print("\n| grid | window | density | queries per box | allowed of computed pairs | upper bound, of the limit |")
    print("|---|---|---|---|---|---|")
    for bias in chosen(asked):
        if bias.tile is None:
            least, cut = min(((looked(cut, rates, counts), cut) for cut in all_cuts(bias)), key=lambda found: found[0])
            seen, tokens = bias.density * prod(bias.grid) ** 2, prod(bias.grid)
            sides = ["x".join(map(str, each)) for each in (bias.grid, bias.window)]
            print(
                f"| {' | '.join(sides)} | {bias.density:.1%} | {tokens / prod(len(c.segments) for c in cut):.0f} | "
                f"{seen / prod(c.pairs for c in cut):.0%} | {seen * rates['1024 open'] / least:.0%} |"
            )
    print()


def all_cuts(bias: SpaceTime) -> Iterator[tuple[Cut, ...]]:
    return product(*(cuts(bias.sees(axis), 1) for axis in range(3)))


def looked(cut: tuple[Cut, ...], rates: dict[str, float], counts: tuple[int, ...]) -> float:
    """Nanoseconds of all boxes of one head, at the rate of the next larger number of queries."""
    sides = [Counter((s.q1 - s.q0, s.k1 - s.k0, s.whole) for s in each.segments) for each in cut]
    total = 0.0
    for box in product(*(each.items() for each in sides)):
        queries, keys = (prod(side[n] for side, _ in box) for n in (0, 1))
        kind = "open" if all(side[2] for side, _ in box) else "masked"
        count = next((n for n in counts if n >= queries), counts[-1])
        total += prod(times for _, times in box) * queries * keys * rates[f"{count} {kind}"]
    return total


def packing(dispatch: Dispatch, asked: argparse.Namespace) -> None:
    """Sequences of unlike lengths packed into one row, against the same padded to the longest."""
    lengths = MIX[2:] if asked.quick else MIX
    total, longest = sum(lengths), max(lengths)
    cu_seqlens = [sum(lengths[:n]) for n in range(len(lengths) + 1)]
    packed = [drawn(1, total, HEADS, DIM) for _ in range(3)]
    padded = [drawn(len(lengths), longest, HEADS, DIM) for _ in range(3)]
    taken = by_turns(
        {
            "packed": lambda: dispatch.attend(*packed, bias=Blocks(cu_seqlens)),
            "padded": lambda: dispatch.attend(*padded),
            "lengths": lambda: dispatch.attend(*padded, bias=Lengths(lengths, lengths)),
        },
        asked.rounds,
    )
    limit = len(lengths) * longest**2 / sum(n * n for n in lengths)
    print(
        f"| {len(lengths)} sequences, {min(lengths)} to {longest} tokens | ms | speed-up | of the limit {limit:.2f}x |"
    )
    print("|---|---|---|---|")
    for name in ("padded", "lengths", "packed"):
        faster = ratio(taken, "padded", name)
        print(f"| {name} | {middle(taken, name):.1f} | {faster:.2f}x | {faster / limit:.0%} |")
    print()


def decoding(dispatch: Dispatch, asked: argparse.Namespace) -> None:
    """One query a row against caches of unlike lengths, grouped heads and not, against a padded batch with a mask."""
    print("| rows | tokens each | heads on | `KVCache.attend`, ms | padded batch and mask, ms | of the fraction |")
    print("|---|---|---|---|---|---|")
    long = (64, 256, 512, 1024, 1536, 2048, 3072, 4096)
    sixteen = tuple(range(32, 544, 32))
    cases = [(long, 2), (sixteen, 2), (sixteen, HEADS), ((512,) * 16, 2), ((500, 512) * 8, 2)]
    for lengths, kv_heads in cases[: 2 if asked.quick else None]:
        rows, longest = len(lengths), max(lengths)
        cache = KVCache(rows, longest, kv_heads, DIM)
        cache.append(*(drawn(rows, longest, kv_heads, DIM) for _ in range(2)), lengths)
        q = drawn(rows, 1, HEADS, DIM)
        mask = (torch.arange(longest) < torch.tensor(lengths)[:, None])[:, None, None]
        wide = [each.transpose(1, 2) for each in (q, cache.k, cache.v)]
        works: dict[str, Work] = {
            "ours": lambda: cache.attend(q, dispatch=dispatch),  # noqa: B023 (called at once)
            "peer": lambda: scaled_dot_product_attention(*wide, attn_mask=mask, enable_gqa=True),  # noqa: B023
        }
        taken = by_turns(works, asked.rounds * 10)
        share = ratio(taken, "ours", "peer") / (sum(lengths) / rows / longest)
        print(
            f"| {rows} | {min(lengths)} to {longest} | {HEADS} on {kv_heads} | {middle(taken, 'ours'):.3f} | "
            f"{middle(taken, 'peer'):.3f} | {share:.2f} |"
        )
    print()


def choosing(dispatch: Dispatch, asked: argparse.Namespace) -> None:
    """What it costs to find the backend again, and to look for numbers that are not finite."""
    print("| finding the backend of a known problem | median us |\n|---|---|")
    for bias in (None, Causal(window=5), Lengths([9]), SpaceTime((2, 2, 4), (1, 1, 2))):
        q, k, v = (drawn(1, 16, 2, 8) for _ in range(3))
        dispatch.attend(q, k, v, bias=bias)
        taken = by_turns({"find": lambda: dispatch._find(q, k, v, bias, "auto")}, 5000)  # noqa: B023
        print(f"| {bias or 'no bias'} | {middle(taken, 'find') * 1000:.1f} |")
    print()


MEMORY = """
import re, sys, torch
from studio.attention import SpaceTime, attend
def peak():  # KiB of this program; getrusage would begin with what the parent had
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
grid, window, tile = eval(sys.argv[1])
n = grid[0] * grid[1] * grid[2]
q, k, v = (torch.randn(1, n, 8, 64) for _ in range(3))
attend(*(x[:, :512] for x in (q, k, v)))
before = peak()
attend(q, k, v, bias=SpaceTime(grid, window, tile))
print(before, peak())
"""


def memory(dispatch: Dispatch, asked: argparse.Namespace) -> None:
    """Peak resident memory of a process that makes one call with a window."""
    print("| tokens | window | peak of the process, MiB | of the call, MiB | a dense float mask, MiB | share |")
    print("|---|---|---|---|---|---|")
    cases = [
        ((16, 32, 32), (8, 16, 16), (4, 8, 8)),
        ((16, 32, 32), (5, 11, 11), None),
        ((16, 64, 64), (8, 16, 16), (4, 8, 8)),
    ]
    for case in cases[: 1 if asked.quick else None]:
        done = subprocess.run([sys.executable, "-c", MEMORY, repr(case)], capture_output=True, text=True, check=True)
        before, after = map(int, done.stdout.split())
        tokens = case[0][0] * case[0][1] * case[0][2]
        dense = tokens**2 * 4 / 2**20
        took = (after - before) / 1024
        tile = "x".join(map(str, case[2])) if case[2] else "-"
        print(
            f"| {tokens:,} | {'x'.join(map(str, case[1]))}, tile {tile} | {after / 1024:,.0f} | {took:,.0f} | "
            f"{dense:,.0f} | {took / dense:.1%} |"
        )
    print()


PARTS = {each.__name__: each for each in (choosing, grid, windows, bound, packing, decoding, memory)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all unless given")
    parser.add_argument("--quick", action="store_true", help="smaller shapes, fewer rounds")
    parser.add_argument("--tokens", type=int, nargs="*", help="of `windows` and `bound`, grids of so many alone")
    given = parser.parse_args()
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    given.rounds = 3 if given.quick else 9
    print(f"float32 unless said, {HEADS} heads of {DIM}, {torch.get_num_threads()} threads, {given.rounds} rounds\n")
    with torch.inference_mode():
        for name in given.parts or PARTS:
            PARTS[name](Dispatch(), given)


if __name__ == "__main__":
    main()
