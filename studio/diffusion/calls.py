"""Calls of modules as data, and several of them as one: inputs are concatenated along the batch axis, outputs split.

A call can join another if all its arguments have the same structure. The batch size of a call is the first axis of its
first tensor with at least three axes (else two). Tensors with that first axis are concatenated. Scalars and tensors of
one element, such as timesteps, are repeated for each row. All other tensors (position ids, rotary tables) and all plain
values must be equal. Whether a module computes rows independently is not known, so the first shared call of each kind
is compared with single calls (`Batcher`).

Try it: ``pytest tests/studio/diffusion/test_stepping.py``
"""

from __future__ import annotations

import dis
import hashlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from studio.diffusion.shared import NONE, ModuleSettings, Shared
from studio.errors import ModelError, describe, is_out_of_memory

ROW_LISTS = frozenset({"ZImageTransformer2DModel", "ZImageControlNetModel"})
"""Modules whose lists of tensors have one item per row, without a batch axis."""
_PLAIN = (int, float, bool, str, bytes, type(None), torch.dtype, torch.device)
_hashes: Any = WeakIdKeyDictionary()  # tensor -> (its version, hash of its content)


@dataclass(frozen=True, eq=False)
class ModuleCall:
    """A call of a component's `method` (``__call__``, ``decode`` …) that has not run yet.

    `context` is what the pipeline gave to `cache_context`: a name, such as ``cond`` or ``uncond``, and options.
    `settings` is what the pipeline has set in its modules.
    """

    component: str
    method: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    context: tuple[str, Mapping[str, Any]] | None = None
    settings: ModuleSettings = NONE

    @property
    def kind(self) -> tuple[str, str]:
        """The component and the method."""
        return self.component, self.method

    def run(self, module: Any, owner: str = "") -> Any:
        """Call the module. `owner` keeps what a step cache stores of one request from another."""
        function = module if self.method == "__call__" else getattr(module, self.method)
        args, kwargs = copied(self.args), {name: copied(each) for name, each in self.kwargs.items()}
        try:
            if self.context is not None and getattr(module, "is_cache_enabled", False):
                name, options = self.context
                with module.cache_context(f"{owner}/{name}", **options):
                    return function(*args, **kwargs)
            return function(*args, **kwargs)
        except BaseException:
            _forget(module)
            raise


def _forget(module: Any) -> None:
    """Drop what decoders of clips keep between chunks, so that a repeated call begins anew after one that failed."""
    for name in ("_clear_conv_cache", "clear_cache"):
        if callable(method := getattr(module, name, None)):
            method()


def copied(value: Any, leaf: Callable[[Any], Any] = lambda value: value) -> Any:
    """The same with new lists and dicts, and `leaf` of all else: modules and pipelines write into what they get."""
    if type(value) in (list, tuple):
        return type(value)(copied(each, leaf) for each in value)
    if isinstance(value, Mapping):
        found = {name: copied(each, leaf) for name, each in value.items()}
        return found if type(value) is dict else type(value)(**found)  # outputs of diffusers and transformers
    return leaf(value)


def cloned(value: Any) -> Any:
    """The same with new lists, dicts and tensors."""
    return copied(value, lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf)


def fault(what: str, error: BaseException) -> ModelError | None:
    """The error for `what`, a module or pipeline that cannot work with what it gets; None if memory ran out, the device
    failed, or the error is another.
    """
    kinds = ArithmeticError | AssertionError | AttributeError | LookupError | TypeError | ValueError
    plain = type(error) is RuntimeError and not is_out_of_memory(error)
    plain = plain and not any(words in str(error).lower() for words in ("cuda error", "hip error"))
    if not (plain or isinstance(error, kinds)):
        return None
    hint = "the model may lack a component, or its parts or these inputs may not fit together"
    return ModelError(f"{what} failed: {describe(error, 200)}", hint=hint)


def refused(error: BaseException) -> bool:
    """Whether code has refused its arguments with a `raise` statement of its own, not met an error by using them."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return place is not None and place.tb_frame.f_code.co_code[place.tb_lasti] == dis.opmap["RAISE_VARARGS"]


class CannotMerge(Exception):
    """Calls or their output cannot be concatenated or split."""


def key_of(call: ModuleCall, module: Any) -> Hashable:
    """Calls with equal keys may be merged. A call with an argument of an unknown kind has a key of its own."""
    if runs_alone(call, module):
        return "alone", id(call)
    lists = type(module).__name__ in ROW_LISTS
    rows = _rows(call, lists)
    return call.component, call.method, _key(call.args, rows, lists), _key(call.kwargs, rows, lists)


def runs_alone(call: ModuleCall, module: Any) -> bool:
    """Whether a call must be run by itself, and each time: it may read or write more than what it gets and returns.

    A step cache decides for the whole batch; the attention processors and hooks of a pipeline may do anything.
    """
    return bool(getattr(module, "is_cache_enabled", False) or call.settings)


def _rows(call: ModuleCall, lists: bool) -> int:
    tensors = list(_tensors((*call.args, *call.kwargs.values())))
    if lists:
        return next((len(each) for each in (*call.args, *call.kwargs.values()) if isinstance(each, list)), 1)
    for least in (3, 2):
        for each in tensors:
            if each.ndim >= least:
                return len(each)
    return 1


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)


def _key(value: Any, rows: int, lists: bool) -> Hashable:
    if isinstance(value, Tensor):
        how = _how(value, rows)
        shape = {"scalar": (), "rows": tuple(value.shape[1:])}.get(how, tuple(value.shape))
        return how, value.dtype, shape, content_hash(value) if how == "shared" else None
    if isinstance(value, Mapping):
        return type(value), tuple((name, _key(each, rows, lists)) for name, each in value.items())
    if lists and isinstance(value, list) and len(value) == rows:
        return "row list", tuple(sorted({(each.dtype, tuple(each.shape[:1])) for each in _tensors(value)}, key=str))
    if isinstance(value, list | tuple):
        return type(value), tuple(_key(each, rows, lists) for each in value)
    return (type(value), repr(value)) if isinstance(value, _PLAIN) else ("object", id(value))


def _how(value: Tensor, rows: int) -> str:
    if value.ndim == 0 or (value.ndim == 1 and len(value) == 1):
        return "scalar"
    return "rows" if len(value) == rows else "shared"


def content_hash(value: Tensor) -> bytes:
    """A hash of a tensor's content; it is read once, as long as the tensor is not written."""
    version = 0 if value.is_inference() else value._version
    known: tuple[int, bytes] | None = _hashes.get(value)
    if known is None or known[0] != version:
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        known = version, hashlib.sha256(data.numpy().tobytes()).digest()
        _hashes[value] = known
    return known[1]


def merge(calls: Sequence[ModuleCall], lists: bool = False) -> tuple[ModuleCall, list[int]]:
    """One call for several with equal keys, and the number of rows of each."""
    rows = [_rows(call, lists) for call in calls]

    def joined(values: Sequence[Any]) -> Any:
        first = values[0]
        if isinstance(first, Tensor):
            how = _how(first, rows[0])
            if how == "shared":
                return first
            if how == "scalar":
                return torch.cat([each.reshape(1).expand(count) for each, count in zip(values, rows, strict=True)])
            return torch.cat(list(values))
        if isinstance(first, Mapping):
            return {name: joined([each[name] for each in values]) for name in first}
        if lists and isinstance(first, list) and len(first) == rows[0]:
            return [each for value in values for each in value]
        if isinstance(first, list | tuple):
            return type(first)(joined([each[i] for each in values]) for i in range(len(first)))
        return first

    lead = calls[0]
    args = tuple(joined([call.args[i] for call in calls]) for i in range(len(lead.args)))
    kwargs = {name: joined([call.kwargs[name] for call in calls]) for name in lead.kwargs}
    return ModuleCall(lead.component, lead.method, args, kwargs), rows


def split(output: Any, rows: Sequence[int]) -> list[Any]:
    """The output of each of the merged calls. Raises CannotMerge if a part of it has no batch axis."""
    if output is None:
        return [None] * len(rows)
    if isinstance(output, Tensor):
        if output.ndim == 0 or len(output) != sum(rows):
            raise CannotMerge(f"an output of the shape {tuple(output.shape)} for {sum(rows)} rows")
        return list(torch.split(output, list(rows)))
    if isinstance(output, list) and len(output) == sum(rows) and all(isinstance(each, Tensor) for each in output):
        ends = [sum(rows[: i + 1]) for i in range(len(rows))]
        return [output[end - count : end] for end, count in zip(ends, rows, strict=True)]
    if isinstance(output, Mapping):  # outputs of diffusers and transformers are mappings with fields
        parts = {name: split(each, rows) for name, each in output.items()}
        made = [{name: each[i] for name, each in parts.items()} for i in range(len(rows))]
        return made if type(output) is dict else [type(output)(**each) for each in made]
    if isinstance(output, list | tuple):
        items = [split(each, rows) for each in output]
        return [type(output)(each[i] for each in items) for i in range(len(rows))]
    raise CannotMerge(f"an output that is a {type(output).__name__}")


def shape_of(output: Any) -> Any:
    """The same structure with one zero in place of each tensor's numbers, for `zeros_like`."""
    return copied(output, lambda leaf: leaf.new_zeros(()).expand(leaf.shape) if isinstance(leaf, Tensor) else leaf)


def zeros_like(output: Any) -> Any:
    """The same structure with zeros in place of numbers."""
    return copied(output, lambda leaf: leaf.new_zeros(leaf.shape) if isinstance(leaf, Tensor) else leaf)


@dataclass
class Batcher:
    """Runs calls of a model's components, merged where a comparison has shown that this does not change results.

    `verdicts` has a reason for each kind of call (component, method, argument names) that must run alone, and "" for
    each that may be merged.
    """

    module_of: Callable[[str], Any]
    shared: Shared
    verdicts: dict[Hashable, str] = field(default_factory=dict)

    def run(self, calls: Sequence[tuple[ModuleCall, str]]) -> list[Any]:
        """The outputs of calls with their owners, all with equal keys. Raises ModelError for a fault of the module."""
        try:
            return self._outputs(calls)
        except Exception as error:
            if (found := fault(f"`{calls[0][0].component}` of the model", error)) is not None:
                raise found from error
            raise

    def _outputs(self, calls: Sequence[tuple[ModuleCall, str]]) -> list[Any]:
        module = self.module_of(calls[0][0].component)
        if len(calls) == 1:
            call, owner = calls[0]
            with self.shared.applied(call.settings):
                return [call.run(module, owner)]
        kind = (*calls[0][0].kind, tuple(calls[0][0].kwargs))
        verdict = self.verdicts.get(kind)
        plain = [call for call, _ in calls]
        if verdict == "":
            return self._merged(plain, module)
        single = [call.run(module, owner) for call, owner in calls]
        if verdict is None:
            self.verdicts[kind] = self._compare(plain, module, single)
        return single

    def _merged(self, calls: Sequence[ModuleCall], module: Any) -> list[Any]:
        merged, rows = merge(calls, type(module).__name__ in ROW_LISTS)
        return split(merged.run(module), rows)

    def _compare(self, calls: Sequence[ModuleCall], module: Any, single: Sequence[Any]) -> str:
        """Why these calls must not be merged, or ""."""
        try:
            merged = self._merged(calls, module)
        except Exception as error:  # modules that take one row raise anything
            if is_out_of_memory(error):
                raise
            return describe(error, 200)
        for one, two in zip(single, merged, strict=True):
            for a, b in zip(_tensors(one), _tensors(two), strict=True):
                if a.shape != b.shape or not close(a, b):
                    return "its rows depend on each other"
        return ""


def close(a: Tensor, b: Tensor) -> bool:
    """Whether two outputs differ by rounding only."""
    if not a.is_floating_point():
        return bool(torch.equal(a, b))
    tolerance = 1e-4 if a.dtype in (torch.float32, torch.float64) else 5e-2
    scale = float(a.float().abs().max()) if a.numel() else 0.0
    return bool((a.float() - b.float()).abs().max() <= tolerance * max(scale, 1e-3)) if a.numel() else True
