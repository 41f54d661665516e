"""`attend`, the attention of all models, and the choice of the backend that serves a call.

It is the fastest backend that does not refuse the problem: as measured on this machine if `studio attention --tune` was
run, else in a fixed order. Nothing is measured while a request runs: kernels differ in the last bit, and the same seed
must make the same bytes. The choice for a kind of problem is cached.

Try it: ``studio attention --shape 1,4096,8,64``
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from functools import cache, partial
from threading import Lock
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from studio.attention.backend import Backend
from studio.attention.backends import built_in
from studio.attention.backends.chunked import attend_exactly
from studio.attention.backends.masks import MOST_MASK
from studio.attention.backends.sdpa import computes_as_a_cpu
from studio.attention.bias import Bias
from studio.attention.current import DispatchSettings, current_settings, record_backend
from studio.attention.problem import Problem
from studio.attention.table import Table
from studio.errors import UnknownName, UsageError

FEW_PAIRS = 1 << 17  # up to this many pairs, materializing a mask costs less than launching blocks
FEW_KEYS_DECODING = 1 << 15  # with few queries, each pair reads a key of each key/value head, and padding costs as much
# torch's CPU flash kernel skips masked keys in blocks of 512, so with fewer keys it skips none. `chunked` skips blocks
# of 256, and is faster where there are enough pairs (of one head) to pay for two launches.
SKIPS_NONE, EARNS_TWO_STARTS = range(257, 768), 2 << 20
LONG_FOR_CUDNN = 1024  # keys
_MOST_CACHED = 4096  # choices
_Result = tuple[Tensor, Callable[[], Tensor] | None]


class Dispatch:
    """The backends by name, with their measurements. Thread-safe; holds no tensors."""

    def __init__(self, more: Iterable[Backend] = (), table: Table | None = None) -> None:
        """`more` are backends of plugins. Raises UsageError for a name that is taken."""
        self.backends: dict[str, Backend] = {}
        for backend in (*built_in(), *more):
            if backend.name in self.backends:
                raise UsageError(f"an attention backend named `{backend.name}` exists already")
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
        return (torch.cat([_checked(*each) for each in made]) if _may_be_nonfinite(out) else out)[:, 0]

    def _serve(self, q: Tensor, k: Tensor, v: Tensor, bias: Bias | None, scale: float | None, name: str) -> _Result:
        """The output, and a function that recomputes it exactly where inputs are not finite; None if it is exact."""
        chosen, problem = self._find(q, k, v, bias, name)
        record_backend(chosen.name)
        if problem.empty:
            return _zeros(q, k, v), None
        scale = 1 / math.sqrt(problem.head_dim) if scale is None else scale
        recompute = None if chosen.name == "reference" else partial(attend_exactly, q, k, v, problem, scale)
        return chosen.attend(q, k, v, problem, scale), recompute

    def choose(self, problem: Problem) -> Backend:
        """The backend for a problem. Raises UsageError, with the reasons of all backends, if none supports it."""
        for name in self.order(problem):
            if not self.backends[name].refuses(problem):
                return self.backends[name]
        raise UsageError(f"no attention backend supports this: {self._reasons(problem)}")

    def order(self, problem: Problem) -> Sequence[str]:
        """All names, best first: those measured for such problems, fastest first, then the rest in fixed order."""
        measured = [name for name in self.table.fastest(problem) if name in self.backends]
        fixed = fixed_order(problem, self.backends)
        return [*measured, *(name for name in fixed if name not in measured)]

    def explain(self, problem: Problem) -> dict[str, list[str]]:
        """Every backend, best first, with its reasons for refusing the problem; no reason if it supports it."""
        return {name: self.backends[name].refuses(problem) for name in self.order(problem)}

    def _find(self, q: Tensor, k: Tensor, v: Tensor, bias: Bias | None, name: str) -> tuple[Backend, Problem]:
        """The backend for these tensors, cached; without a bias the checked problem is cached too."""
        if bias is not None:
            problem = Problem.of(q, k, v, bias)
            key: Hashable = (name, problem.key)
            return self._chosen.get(key, (None,))[0] or self._choose_and_cache(key, name, problem), problem
        grad = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
        key = (name, q.shape, k.shape, v.shape, q.dtype, k.dtype, v.dtype, q.device, k.device, v.device, grad)
        if (found := self._chosen.get(key)) is not None:
            return found
        problem = Problem.of(q, k, v)
        return self._choose_and_cache(key, name, problem), problem

    def _choose_and_cache(self, key: Hashable, name: str, problem: Problem) -> Backend:
        found = self.choose(problem) if name == "auto" else self._forced(name, problem)
        if len(self._chosen) >= _MOST_CACHED:
            self._chosen.clear()
        self._chosen[key] = (found, replace(problem, bias=None))  # the bias may hold a tensor
        return found

    def _forced(self, name: str, problem: Problem) -> Backend:
        if name not in self.backends:
            raise UnknownName("attention backend", name, ("auto", *self.backends))
        if self.backends[name].refuses(problem):
            raise UsageError(
                f"the attention backend `{name}` does not support this: {self._reasons(problem, name)}",
                hint='use `backend="auto"`, or a backend without a reason',
            )
        return self.backends[name]

    def _reasons(self, problem: Problem, first: str | None = None) -> str:
        names = sorted(self.backends, key=lambda name: name != first)
        found = ((name, self.backends[name].refuses(problem)) for name in names)
        return "; ".join(f"{name}: {', '.join(reasons) or 'supports it'}" for name, reasons in found)


def fixed_order(problem: Problem, names: Iterable[str]) -> list[str]:
    """Names in the order used without measurements; unknown names come before the slow ones."""
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
        dense = problem.mask_bytes() <= MOST_MASK  # one launch instead of the hundreds of a plan
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
    ]  # flex: compiling it is not worth it where others serve
    slow = [name for name in slow if name not in fast]
    known = list(names)
    unknown = [name for name in known if name not in fast and name not in slow]
    return [name for name in (*fast, *unknown, *slow) if name in known]


@cache
def _is_hopper(device: torch.device) -> bool:
    """Compute capability 9.0 or newer: there cuDNN is 1.5 to 2 times as fast as FlashAttention 2 on long rows."""
    return torch.cuda.get_device_capability(device) >= (9, 0)


def _skips_none(problem: Problem) -> bool:
    causal = problem.plain_causal and not problem.open and problem.device.type == "cpu"
    return causal and problem.queries in SKIPS_NONE and problem.keys <= SKIPS_NONE.stop


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, bias: Bias | None = None, scale: float | None = None, backend: str = "auto"
) -> Tensor:
    """softmax(scale * q k + bias) v, by the fastest backend that supports it.

    Args:
        q: queries (batch, tokens, heads, head_dim), in float64, float32, bfloat16 or float16.
        k, v: keys and values (batch, tokens, kv_heads, head_dim), where heads is a multiple of kv_heads; `v` may have
            another head_dim.
        bias: the mask, as a description (`Causal`, `Lengths`, `Blocks`, `SpaceTime`, `Dense`, or a sum of these).
        scale: 1 / sqrt(head_dim) unless given.
        backend: `auto`, or the name of a backend.

    Returns (batch, tokens, heads, head_dim of v). A query whose keys are all masked gets zeros. On a CPU, non-finite
    values reach only queries that attend to them (see `studio.attention.exact`); on a GPU this is not checked, since
    the check would wait for the device. Raises UsageError if tensors or bias do not match, or if the named backend does
    not support the problem, with all reasons.
    """
    return current_dispatch().attend(q, k, v, bias=bias, scale=scale, backend=backend)


def attend_rows(q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
    """A decode step: one query for each of several requests, each with its own KV cache tensors.

    Rows are so small that a check costs as much as attention, so non-finite values are checked once for all rows.

    Args:
        q: one query per row, (rows, heads, head_dim).
        keys, values: for each row (1, tokens, kv_heads, head_dim), with one token or more.

    Returns (rows, heads, head_dim of v): for each row what `attend` returns without a bias. Raises as it does.
    """
    return current_dispatch().attend_rows(q, keys, values)


def current_dispatch() -> Dispatch:
    """The dispatch that `attend` uses in this thread: of the settings of `use_dispatch`, else Studio's own backends."""
    settings = current_settings() or _DEFAULT
    found = _built.get(settings)
    if found is None:
        with _building:
            found = _built.get(settings) or Dispatch(settings.backends, Table.load(settings.home))
            _built[settings] = found
    return found


_DEFAULT = DispatchSettings()
_built: WeakKeyDictionary[DispatchSettings, Dispatch] = WeakKeyDictionary()
_building = Lock()


def _zeros(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Zeros for empty inputs; part of the autograd graph, so that gradients are zeros too."""
    out = q.new_zeros(*q.shape[:3], v.shape[3])
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        out = out + 0 * (q.sum() + k.sum() + v.sum())
    return out


def _checked(out: Tensor, recompute: Callable[[], Tensor] | None) -> Tensor:
    """The output, recomputed exactly if inputs may not be finite."""
    return recompute() if recompute is not None and _may_be_nonfinite(out) else out


def _may_be_nonfinite(out: Tensor) -> bool:
    """Whether inputs may not be finite: then the output's sum is not finite either. On a CPU the sum costs little."""
    return out.device.type == "cpu" and not torch.compiler.is_compiling() and not _sum_is_finite(out)


def _sum_is_finite(x: Tensor) -> bool:
    """False if an element is not finite, or if the sum overflows."""
    wide = torch.float32 if x.dtype == torch.float16 else None  # other dtypes hardly overflow
    return math.isfinite(x.detach().sum(dtype=wide).item())
