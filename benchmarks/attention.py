"""Attention on this machine: dispatch, windows, packing, decoding and memory, against the kernels called directly.

    python benchmarks/attention.py            # all tables, as Markdown
    python benchmarks/attention.py --quick    # smaller shapes, fewer rounds

All that stands in one table is measured by turns, and ratios are medians of the rounds' ratios, so that a busy machine
is as unkind to each. Peers: torch's own dispatch, diffusers' `dispatch_attention_fn`, compiled FlexAttention (forward
only; it is left out where it cannot be compiled).
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from turns import Work, by_turns

from studio import torch_setup
from studio.attention import Blocks, Causal, Dispatch, KVCache, Lengths, Problem, SpaceTime

torch_setup.prepare()

HEADS, DIM = 8, 64
MIX = (4096, 2048, 1024, 512, 512, 256, 128, 64)  # tokens of eight sequences, mean 1,080


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def ratio(taken: dict[str, list[float]], a: str, b: str) -> float:
    """Median of a / b, round by round."""
    return statistics.median(x / y for x, y in zip(taken[a], taken[b], strict=True))


def middle(taken: dict[str, list[float]], name: str) -> float:
    """Median milliseconds."""
    return statistics.median(taken[name]) * 1000


def grid(dispatch: Dispatch, rounds: int, quick: bool) -> None:
    """Dispatch against every willing backend called directly, and against torch's and diffusers' own choice."""
    from diffusers.models.attention_dispatch import dispatch_attention_fn

    print(
        "| shape | bias | dtype | served by | ms | to the best called directly | to torch's own | to diffusers' own |"
    )
    print("|---|---|---|---|---|---|---|---|")
    shapes = [(2, 256, 8, 64), (1, 1024, 8, 64), (1, 2048, 8, 64), (4, 512, 12, 64), (1, 1024, 16, 128)]
    for shape in shapes[: 2 if quick else None]:
        for bias in (None, Causal(offset=0), Causal(window=128)):
            for dtype in (torch.float32, torch.bfloat16):
                q, k, v = (drawn(*shape, dtype=dtype) for _ in range(3))
                one_shape(dispatch, (q, k, v), bias, rounds, dispatch_attention_fn)
    print()


def one_shape(
    dispatch: Dispatch,
    given: tuple[Tensor, Tensor, Tensor],
    bias: Causal | None,
    rounds: int,
    diffusers: Callable[..., Tensor],
) -> None:
    q, k, v = given
    problem = Problem.of(q, k, v, bias)
    scale = problem.head_dim**-0.5
    served = dispatch.choose(problem).name
    refused = dispatch.explain(problem)
    able = [name for name, reasons in refused.items() if not reasons and name not in ("flex", "reference")]
    works: dict[str, Work] = {
        name: (lambda name=name: dispatch.backends[name].attend(q, k, v, problem, scale)) for name in able
    }
    works["attend"] = lambda: dispatch.attend(q, k, v, bias=bias)
    causal = bias is not None and bias.window is None
    if bias is None or causal:
        works["torch"] = lambda: scaled_dot_product_attention(
            *(each.transpose(1, 2) for each in given), is_causal=causal
        )
        works["diffusers"] = lambda: diffusers(q, k, v, is_causal=causal)
    taken = by_turns(works, rounds)
    best = min(able, key=lambda name: middle(taken, name))
    own = [f"{ratio(taken, 'attend', name):.3f}" if name in taken else "-" for name in ("torch", "diffusers")]
    print(
        f"| {'x'.join(map(str, q.shape))} | {bias or 'none'} | {problem.dtype_name} | {served} | "
        f"{middle(taken, 'attend'):.2f} | {ratio(taken, 'attend', best):.3f} ({best}) | {own[0]} | {own[1]} |"
    )


def windows(dispatch: Dispatch, rounds: int, quick: bool) -> None:
    """3-D windows against unmasked flash, with the limit that the density allows, and against FlexAttention."""
    print("| grid | window | tile | density | flash, all pairs, ms | ms | faster | of the limit | flex, ms |")
    print("|---|---|---|---|---|---|---|---|---|")
    cases = [
        SpaceTime((8, 24, 24), (6, 12, 16), (2, 4, 8)),
        SpaceTime((8, 24, 24), (4, 16, 8), (4, 8, 8)),
        SpaceTime((8, 24, 24), (5, 15, 15)),
        SpaceTime((8, 32, 32), (4, 16, 16), (4, 8, 8)),
        SpaceTime((16, 32, 32), (8, 16, 16), (4, 8, 8)),
        SpaceTime((16, 32, 64), (8, 16, 32), (4, 8, 8)),
    ]
    for bias in cases[: 2 if quick else None]:
        tokens = bias.grid[0] * bias.grid[1] * bias.grid[2]
        q, k, v = (drawn(1, tokens, HEADS, DIM) for _ in range(3))
        works: dict[str, Work] = {
            "flash": lambda: dispatch.attend(q, k, v, backend="sdpa-flash"),  # noqa: B023 (called at once)
            "ours": lambda: dispatch.attend(q, k, v, bias=bias),  # noqa: B023
        }
        if tokens <= 8192 and not dispatch.backends["flex"].refuses(Problem.of(q, k, v, bias)):
            works["flex"] = lambda: dispatch.attend(q, k, v, bias=bias, backend="flex")  # noqa: B023
        taken = by_turns(works, rounds if tokens <= 8192 else 2)
        faster = ratio(taken, "flash", "ours")
        flex = f"{middle(taken, 'flex'):.1f}" if "flex" in taken else "-"
        sides = ["x".join(map(str, each)) if each else "-" for each in (bias.grid, bias.window, bias.tile)]
        flash, ours = middle(taken, "flash"), middle(taken, "ours")
        print(
            f"| {' | '.join(sides)} | {bias.density:.1%} | {flash:.1f} | {ours:.1f} | "
            f"{faster:.2f}x | {faster * bias.density:.0%} | {flex} |"
        )
    print()


def packing(dispatch: Dispatch, rounds: int, quick: bool) -> None:
    """Sequences of unlike lengths packed into one row, against the same padded to the longest."""
    lengths = MIX[2:] if quick else MIX
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
        rounds,
    )
    limit = len(lengths) * longest**2 / sum(n * n for n in lengths)
    print(f"| {len(lengths)} sequences, {min(lengths)} to {longest} tokens | ms | faster | of the limit {limit:.2f}x |")
    print("|---|---|---|---|")
    for name in ("padded", "lengths", "packed"):
        faster = ratio(taken, "padded", name)
        print(f"| {name} | {middle(taken, name):.1f} | {faster:.2f}x | {faster / limit:.0%} |")
    print()


def decoding(dispatch: Dispatch, rounds: int, quick: bool) -> None:
    """One query a row against caches of unlike lengths, with eight query heads on two of the cache."""
    lengths = [64, 256, 512, 1024] if quick else [64, 256, 512, 1024, 1536, 2048, 3072, 4096]
    cache = KVCache(len(lengths), max(lengths), 2, DIM)
    cache.append(drawn(len(lengths), max(lengths), 2, DIM), drawn(len(lengths), max(lengths), 2, DIM), lengths)
    q = drawn(len(lengths), 1, HEADS, DIM)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])[:, None, None]
    taken = by_turns(
        {
            "KVCache.attend": lambda: cache.attend(q, using=dispatch),
            "peer: SDPA with a padding mask": lambda: scaled_dot_product_attention(
                *(each.transpose(1, 2) for each in (q, cache.k, cache.v)), attn_mask=mask, enable_gqa=True
            ),
        },
        rounds * 10,
    )
    print(f"| one token each behind {len(lengths)} rows of {min(lengths)} to {max(lengths)} | ms |\n|---|---|")
    for name in taken:
        print(f"| {name} | {middle(taken, name):.3f} |")
    print()


def choosing(dispatch: Dispatch) -> None:
    """What it costs to find the backend again, and to look for numbers that are not finite."""
    print("| finding the backend of a known problem | median us |\n|---|---|")
    for bias in (None, Causal(window=5), Lengths([9]), SpaceTime((2, 2, 4), (1, 1, 2))):
        q, k, v = (drawn(1, 16, 2, 8) for _ in range(3))
        dispatch.attend(q, k, v, bias=bias)
        taken = by_turns({"find": lambda: dispatch._find(q, k, v, bias, "auto")}, 5000)  # noqa: B023
        print(f"| {bias or 'no bias'} | {middle(taken, 'find') * 1000:.1f} |")
    print()


MEMORY = """
import resource, sys, torch
from studio.attention import SpaceTime, attend
grid, window, tile = eval(sys.argv[1])
n = grid[0] * grid[1] * grid[2]
q, k, v = (torch.randn(1, n, 8, 64) for _ in range(3))
attend(*(x[:, :512] for x in (q, k, v)))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
attend(q, k, v, bias=SpaceTime(grid, window, tile))
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(before, after)
"""


def memory(quick: bool) -> None:
    """Peak resident memory of a process that makes one call with a window."""
    print("| tokens | window | peak of the process, MiB | of the call, MiB | a dense float mask, MiB | share |")
    print("|---|---|---|---|---|---|")
    cases = [
        ((16, 32, 32), (8, 16, 16), (4, 8, 8)),
        ((16, 32, 32), (5, 11, 11), None),
        ((16, 64, 64), (8, 16, 16), (4, 8, 8)),
    ]
    for case in cases[: 1 if quick else None]:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller shapes, fewer rounds")
    quick = parser.parse_args().quick
    rounds = 3 if quick else 9
    dispatch = Dispatch()
    print(f"float32 unless said, {HEADS} heads of {DIM}, {torch.get_num_threads()} threads, {rounds} rounds\n")
    with torch.inference_mode():
        choosing(dispatch)
        grid(dispatch, rounds, quick)
        windows(dispatch, rounds, quick)
        packing(dispatch, rounds, quick)
        decoding(dispatch, rounds, quick)
    memory(quick)


if __name__ == "__main__":
    main()
