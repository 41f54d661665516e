"""`studio attention`: which backend serves an attention shape, how fast, and why the others cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from studio.cli.lib.output import emit_json, table
from studio.cli.lib.settings import Settings

if TYPE_CHECKING:
    from studio.attention.problem import Problem

COLUMNS = ("backend", "state", "more")
DTYPES = ("float64", "float32", "bfloat16", "float16")


class _Sizes(click.ParamType[tuple[int, ...]]):
    """BATCH,TOKENS,HEADS,HEAD_DIM."""

    name = "sizes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        parts = str(value).split(",")
        if len(parts) != 4 or not all(each.isdecimal() and 1 <= int(each) <= 1 << 24 for each in parts):
            self.fail(
                f"`{value}` must be BATCH,TOKENS,HEADS,HEAD_DIM, each from 1 to {1 << 24}: `1,4096,8,64`.", param, ctx
            )
        return tuple(map(int, parts))


@click.command("attention")
@click.option("--shape", required=True, type=_Sizes(), metavar="B,T,H,D", help="Batch, tokens, heads, head_dim.")
@click.option("--keys", type=click.IntRange(1, 1 << 24), metavar="N", help="Number of key/value tokens.  [default: T]")
@click.option(
    "--kv-heads", type=click.IntRange(1, 1 << 16), metavar="N", help="Number of key/value heads.  [default: H]"
)
@click.option("--bias", default="none", metavar="TEXT", show_default=True,
              help="Attention mask: causal, lengths:keys=9/7, blocks:cu_seqlens=0/5/16,"
                   " spacetime:grid=8x24x24,window=4x16x8,tile=4x8x8; joined by +.")  # fmt: skip
@click.option("--dtype", type=click.Choice(DTYPES), default="float32", show_default=True, help="Tensor dtype.")
@click.option("--tune", is_flag=True, help="Benchmark, and use the fastest for such shapes from now on.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def command(settings: Settings, /, **asked: Any) -> None:
    """Show which backend computes attention of this shape, how fast each backend is, and why others cannot.

    Times are of forward calls, interleaved. Nothing is saved unless --tune is given: then the times are written to the
    data folder, and the fastest backend serves shapes of this kind until the version of a library changes.
    """
    from studio.attention.dispatch import Dispatch
    from studio.attention.table import Table
    from studio.attention.tune import measure

    studio = settings.studio()
    problem = _problem(settings.device, **asked)
    dispatch = Dispatch(studio.plugins.attention.values(), Table.load(studio.home))
    refused = dispatch.explain(problem)
    able = [name for name, reasons in refused.items() if not reasons]
    # the reference is slow and flex compiles for seconds: they are measured only with --tune
    seconds = measure(dispatch, problem, able if asked["tune"] else [n for n in able if n not in ("reference", "flex")])
    if asked["tune"]:
        dispatch.table.record(problem, seconds)
        dispatch.table.save()
    serves = dispatch.choose(problem).name
    if asked["as_json"]:
        emit_json({"serves": serves, "tuned": asked["tune"], "seconds": seconds, "refused": _reasons(refused)})
    else:
        table(COLUMNS, [_row(name, serves, seconds.get(name), reasons) for name, reasons in refused.items()])


def _reasons(refused: dict[str, list[str]]) -> dict[str, list[str]]:
    return {name: reasons for name, reasons in refused.items() if reasons}


def _row(name: str, serves: str, seconds: float | None, reasons: list[str]) -> tuple[str, str, str]:
    if reasons:
        return name, "refuses", "; ".join(reasons)
    return name, "serves" if name == serves else "could", "" if seconds is None else f"{seconds * 1000:.3f} ms"


def _problem(
    device: str | None, shape: tuple[int, ...], keys: int | None, kv_heads: int | None, bias: str, dtype: str, **_: Any
) -> Problem:
    """What was asked, checked. Raises UsageError."""
    from studio import devices
    from studio.devices import torch_setup

    place = devices.choose(device)
    torch_setup.prepare()
    import torch

    from studio.attention.problem import Problem
    from studio.attention.spec import parse

    batch, tokens, heads, dim = shape
    sizes = (batch, tokens, keys or tokens, heads, kv_heads or heads, dim, dim)
    return Problem(*sizes, getattr(torch, dtype), torch.device(place), parse(bias))
