"""Which backend serves a call, why the others do not, and `attend`, which asks both questions for every model.

The fastest that refuses nothing: as measured on this machine if `studio attention --tune` was run, else in a fixed
order. Nothing is measured while a request runs, since kernels differ in the last bit and the same seed must make the
same bytes.
A choice is made once for a kind of problem and remembered. This module knows nothing of single kernels.

Try it: ``studio attention --shape 1,4096,8,64``
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from functools import cache, partial

import torch
from torch import Tensor

from studio.attention.backend import Backend
from studio.attention.backends import own
from studio.attention.backends.chunked import attend_exactly
from studio.attention.backends.masks import MOST_MASK
from studio.attention.backends.sdpa import computes_as_a_cpu
from studio.attention.bias import Bias
from studio.attention.problem import Problem
from studio.attention.serving import Serving, lent, served
from studio.attention.table import Table
from studio.errors import UnknownName, UsageError

FEW_PAIRS = 1 << 17  # up to so many pairs, writing out a mask costs less than starting blocks
FEW_KEYS_DECODING = 1 << 15  # with few queries each pair reads a key of each head of keys, and padding costs as much
# Below the diagonal torch's flash kernel for the CPU skips keys by 512: up to so many it skips none, and `chunked`,
# which skips by 256, is faster where there are enough pairs (of one head) to earn two starts.
SKIPS_NONE, EARNS_TWO_STARTS = range(257, 768), 2 << 20
LONG_FOR_CUDNN = 1024  # keys
_MOST_KEPT = 4096
Served = tuple[Tensor, Callable[[], Tensor] | None]


class Dispatch:
    """Backends by name, and what was measured of them. Thread-safe; holds no tensors."""

    def __init__(self, more: Iterable[Backend] = (), table: Table | None = None) -> None:
        """`more` are backends of plugins. Raises UsageError if a name is taken."""
        self.backends: dict[str, Backend] = {}
        for backend in (*own(), *more):
            if backend.name in self.backends:
                raise UsageError(f"the attention backend's name `{backend.name}` is taken")
            self.backends[backend.name] = backend
        self.table = table or Table()
        self._chosen: dict[Hashable, tuple[Backend, Problem]] = {}

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        bias: Bias | None = None,
        scale: float | None = None,
        backend: str = "auto",
    ) -> Tensor:
        """See `attend`."""
        return _checked(*self._serve(q, k, v, bias, scale, backend))

    def attend_rows(self, q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
        """See `attend_rows`."""
        rows = zip(q[:, None, None].unbind(), keys, values, strict=True)  # (1, 1, H, D), (1, K, G, D) twice
        made = [self._serve(row, k, v, None, None, "auto") for row, k, v in rows]
        out = torch.cat([each for each, _ in made])
        return (torch.cat([_checked(*each) for each in made]) if _suspect(out) else out)[:, 0]

    def _serve(self, q: Tensor, k: Tensor, v: Tensor, bias: Bias | None, scale: float | None, name: str) -> Served:
        """What the backend answers, and how to ask for it again where numbers are not finite; None if it is exact."""
        serving, problem = self._find(q, k, v, bias, name)
        served(serving.name)
        if problem.empty:
            return _nothing(q, k, v), None
        scale = 1 / math.sqrt(problem.head_dim) if scale is None else scale
        again = None if serving.name == "reference" else partial(attend_exactly, q, k, v, problem, scale)
        return serving.attend(q, k, v, problem, scale), again

    def choose(self, problem: Problem) -> Backend:
        """The backend that serves a problem. Raises UsageError, with everyone's reasons, if none can."""
        for name in self.order(problem):
            if not self.backends[name].refuses(problem):
                return self.backends[name]
        raise UsageError(f"no attention backend can serve this: {self._reasons(problem)}")

    def order(self, problem: Problem) -> Sequence[str]:
        """All names, best first: those measured for such problems, then the rest as they are fixed."""
        measured = [name for name in self.table.fastest(problem) if name in self.backends]
        fixed = fixed_order(problem, self.backends)
        return [*measured, *(name for name in fixed if name not in measured)]

    def explain(self, problem: Problem) -> dict[str, list[str]]:
        """Every backend, best first, with all reasons why it refuses; none where it could serve."""
        return {name: self.backends[name].refuses(problem) for name in self.order(problem)}

    def _find(self, q: Tensor, k: Tensor, v: Tensor, bias: Bias | None, name: str) -> tuple[Backend, Problem]:
        """The backend for these tensors, remembered; without a bias the checked problem is remembered too."""
        if bias is not None:
            problem = Problem.of(q, k, v, bias)
            key: Hashable = (name, problem.key)
            return self._chosen.get(key, (None,))[0] or self._remember(key, name, problem), problem
        grad = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
        key = (name, q.shape, k.shape, v.shape, q.dtype, k.dtype, v.dtype, q.device, k.device, v.device, grad)
        if (found := self._chosen.get(key)) is not None:
            return found
        problem = Problem.of(q, k, v)
        return self._remember(key, name, problem), problem

    def _remember(self, key: Hashable, name: str, problem: Problem) -> Backend:
        found = self.choose(problem) if name == "auto" else self._forced(name, problem)
        if len(self._chosen) >= _MOST_KEPT:
            self._chosen.clear()
        self._chosen[key] = (found, replace(problem, bias=None))  # the bias may hold a tensor
        return found

    def _forced(self, name: str, problem: Problem) -> Backend:
        if name not in self.backends:
            raise UnknownName("attention backend", name, ("auto", *self.backends))
        if self.backends[name].refuses(problem):
            raise UsageError(
                f"the attention backend `{name}` cannot serve this: {self._reasons(problem, name)}",
                hint='leave it to `backend="auto"`, or choose one that refuses nothing',
            )
        return self.backends[name]

    def _reasons(self, problem: Problem, first: str | None = None) -> str:
        names = sorted(self.backends, key=lambda name: name != first)
        found = ((name, self.backends[name].refuses(problem)) for name in names)
        return "; ".join(f"{name}: {', '.join(reasons) or 'can serve it'}" for name, reasons in found)


def fixed_order(problem: Problem, names: Iterable[str]) -> list[str]:
    """Names in the order that holds where nothing was measured; those it does not know come before the slow ones."""
    flash = ["sdpa-flash", "sdpa-cudnn", "sdpa-efficient"]
    if problem.device.type == "cuda" and problem.keys >= LONG_FOR_CUDNN and _is_hopper(problem.device):
        flash = ["sdpa-cudnn", "sdpa-flash", "sdpa-efficient"]
    pairs = problem.batch * problem.queries * problem.keys
    if _skips_none(problem) and pairs * problem.heads >= EARNS_TWO_STARTS:
        fast = ["chunked", *flash]
    elif problem.open or problem.plain_causal or problem.kinds == {"Dense"}:
        fast = [*flash, "xformers", "chunked"]
    elif computes_as_a_cpu(problem.device):
        few = pairs <= FEW_PAIRS if problem.queries > 16 else pairs * problem.kv_heads < FEW_KEYS_DECODING
        fast = [*flash, "chunked"] if few else ["chunked", *flash]
    elif problem.kinds == {"SpaceTime"}:
        dense = problem.mask_bytes() <= MOST_MASK  # one launch in place of a plan's hundreds
        fast = [*flash, "flex", "chunked"] if dense else ["flex", "chunked", *flash]
    else:
        fast = ["xformers", "chunked", *flash, "flex"]
    if problem.kinds == {"Blocks"} and not problem.open:
        fast = ["varlen", *fast]
    slow = [
        "sdpa-math",
        "varlen",
        "flex",
        "reference",
    ]  # flex: compiling it for a call that others serve is not worth it
    slow = [name for name in slow if name not in fast]
    known = list(names)
    unknown = [name for name in known if name not in fast and name not in slow]
    return [name for name in (*fast, *unknown, *slow) if name in known]


@cache
def _is_hopper(device: torch.device) -> bool:
    """Whether cuDNN is half again to twice as fast as FlashAttention 2 on long rows: from compute capability 9.0 on."""
    return torch.cuda.get_device_capability(device) >= (9, 0)


def _skips_none(problem: Problem) -> bool:
    causal = problem.plain_causal and not problem.open and problem.device.type == "cpu"
    return causal and problem.queries in SKIPS_NONE and problem.keys <= SKIPS_NONE.stop


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, bias: Bias | None = None, scale: float | None = None, backend: str = "auto"
) -> Tensor:
    """softmax(scale * q k + bias) v, by the fastest kernel that can.

    Args:
        q: queries (batch, tokens, heads, head_dim), in float64, float32, bfloat16 or float16.
        k, v: keys and values (batch, tokens, kv_heads, head_dim), where heads is a multiple of kv_heads; `v` may have
            another head_dim.
        bias: what queries may see, described (`Causal`, `Lengths`, `Blocks`, `SpaceTime`, `Dense`, and sums of them).
        scale: 1 / sqrt(head_dim) unless given.
        backend: `auto`, or the name of the one that must serve.

    Returns (batch, tokens, heads, head_dim of v). A query that may see nothing gets zeros. Non-finite numbers reach
    those alone that see them (see `studio.attention.exact`); on a GPU this is not looked for, as it would stall it.
    Raises UsageError if the tensors or the bias do not match, or the named backend cannot serve, with all reasons.
    """
    return default().attend(q, k, v, bias=bias, scale=scale, backend=backend)


def attend_rows(q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
    """One query for each of several requests, each over keys of its own, which lie apart: a step of text.

    Rows are so small that asking costs as much as attending; so whether anything is not finite is asked once for all.

    Args:
        q: a query a row (rows, heads, head_dim).
        keys, values: for each row (1, tokens, kv_heads, head_dim), one token at least.

    Returns (rows, heads, head_dim of v): of each row what `attend` gives without a bias. Raises as it does.
    """
    return default().attend_rows(q, keys, values)


def default() -> Dispatch:
    """What `attend` asks: the `Serving` lent to this thread, else Studio's own backends and the usual table."""
    serving = lent()
    return _own() if serving is None else serving.dispatch


@cache
def _own() -> Dispatch:
    return Serving().dispatch


def _nothing(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Zeros where there is no key or no number; in the graph, so that gradients are zeros too."""
    out = q.new_zeros(*q.shape[:3], v.shape[3])
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        out = out + 0 * (q.sum() + k.sum() + v.sum())
    return out


def _checked(out: Tensor, again: Callable[[], Tensor] | None) -> Tensor:
    """The answer, or one that was made with care where something not finite may have gone in."""
    return again() if again is not None and _suspect(out) else out


def _suspect(out: Tensor) -> bool:
    """Whether something not finite may have gone in: its trace is in the answer, whose sum is all but free on a CPU."""
    return out.device.type == "cpu" and not torch.compiler.is_compiling() and not _sum_is_finite(out)


def _sum_is_finite(x: Tensor) -> bool:
    """False if any number is not finite, or all are so large that their sum is not."""
    wide = torch.float32 if x.dtype == torch.float16 else None  # others can hold the sum of what they can hold, nearly
    return math.isfinite(x.detach().sum(dtype=wide).item())
