"""The tensors of the fake GPU: wrappers around a CPU tensor, with the device ``gpu:0``. See `fake_gpu`.

torch calls `_run` for every operator with a wrapper among its tensors: it checks the devices, unwraps, runs the CPU's
operator and wraps the results. Uses `torch.utils.backend_registration` for Python backends, which torch marks
as experimental (2.13).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map

if TYPE_CHECKING:
    from studio.testing.fake_gpu import FakeGpu

_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
_READING = {"_local_scalar_dense", "equal", "nonzero", "is_nonzero", "masked_select", "_unique2", "unique_consecutive"}
_ALLOCATING = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
_kept: list[object] = []  # torch.library.Library objects; what they register lives as long as they do
_gpu: list[FakeGpu] = []


class _Tensor(torch.Tensor):
    """A tensor of the device; `base` is the wrapped CPU tensor."""

    base: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> _Tensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=torch.device("gpu:0"), requires_grad=False,
        )  # fmt: skip
        made.base = inner
        return made

    def __init__(self, inner: torch.Tensor) -> None: ...

    def untyped_storage(self) -> torch.UntypedStorage:
        """The storage of the CPU tensor, for its size and identity."""
        return self.base.untyped_storage()

    def data_ptr(self) -> int:
        """The address of the CPU tensor."""
        return self.base.data_ptr()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Tensor:
        """Without this, torch would copy the storage of any tensor with an address."""
        if id(self) not in memo:
            _gpu[-1].launched("clone")
            made = _Tensor(self.base.detach().clone()).requires_grad_(self.requires_grad)
            made.__dict__.update({name: value for name, value in self.__dict__.items() if name == "_is_param"})
            memo[id(self)] = made
        found: _Tensor = memo[id(self)]
        return found

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"gpu:0 {self.base!r}"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _run(func, *args, **(kwargs or {}))


_Tensor.__module__, _Tensor.__name__ = "torch", "Tensor"  # for who looks at that, as the encoder of states


def _run(func: Any, *args: Any, **kwargs: Any) -> Any:
    gpu = _gpu[-1]
    name = func.overloadpacket.__name__
    if name == "copy_":
        target, source, *non_blocking = args
        gpu.launched(name)
        return _copy(source, target, any(non_blocking) or bool(kwargs.get("non_blocking")))
    leaves = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
    ours = [each for each in leaves if isinstance(each, _Tensor)]
    wanted = kwargs.get("device")
    to_us = bool(ours) if wanted is None else torch.device(wanted).type == "gpu"
    _look(gpu, name, args, kwargs, ours, leaves, to_us)
    if wanted is not None:
        kwargs["device"] = "cpu"
    if not func.is_view and name not in _ALLOCATING:
        gpu.launched(name)
    same = {id(each.base): each for each in ours}
    kwargs.pop("pin_memory", None)
    inner, named = tree_map(_unwrap, args), tree_map(_unwrap, kwargs)
    made = func(*inner, **named)
    if not func.is_view and torch.Tag.inplace_view not in func.tags:
        _record(gpu, made, lambda: func(*inner, **named), same)

    def wrap(each: Any) -> Any:
        if not isinstance(each, torch.Tensor) or isinstance(each, _Tensor):
            return each
        if id(each) in same:
            return same[id(each)]
        if not to_us or name == "_local_scalar_dense":
            return each
        return _Tensor(each)

    return tree_map(wrap, made)


def _record(gpu: FakeGpu, made: Any, again: Callable[[], Any], known: Container[int] = ()) -> None:
    """Record an operator: replaying it writes to the same tensors as at the recording. `known` has the ids of tensors
    that existed before.
    """
    if gpu.recording is None:
        return
    due = [each for each in tree_leaves(made) if isinstance(each, torch.Tensor)]
    places = [each.detach() for each in due]  # their shapes may change

    def repeat() -> None:
        for old, new in zip(places, tree_leaves(again()), strict=True):
            if new.data_ptr() != old.data_ptr():
                old.copy_(new)

    gpu.recording.steps.append(repeat)
    gpu.recording.size += sum(each.nbytes for each in due if id(each) not in known)


def _look(
    gpu: FakeGpu, name: str, args: Any, kwargs: Any, ours: list[_Tensor], leaves: list[torch.Tensor], to_us: bool
) -> None:
    """Count synchronizations, and raise if devices are mixed."""
    host = [each for each in leaves if not isinstance(each, _Tensor) and each.dim()]
    if name == "_to_copy":
        _count_copy(gpu, args[0], to_us, bool(kwargs.get("non_blocking")))
    elif name in _READING and ours:
        gpu.waited(name)
    elif ours and host:
        if name not in _INDEXING or not isinstance(args[0], _Tensor):
            shapes = ", ".join(str(tuple(each.shape)) for each in host)
            raise RuntimeError(
                f"{name}: expected all tensors to be on the same device, but found gpu:0 and cpu, of shape {shapes}"
            )
        gpu.waited("indexes by a host tensor", pageable=True)


def _count_copy(gpu: FakeGpu, source: torch.Tensor, to_us: bool, non_blocking: bool) -> None:
    """Copies to the host synchronize; so do those from the host, unless non-blocking and from pinned memory."""
    if isinstance(source, _Tensor) == to_us:
        return
    if to_us and gpu.recording is not None:
        raise RuntimeError("operation not permitted when stream is capturing: it copies from the host")
    if not to_us:
        gpu.waited("copies to the host", pageable=not gpu.copies_pinned)
    elif not (non_blocking and gpu.copies_pinned):
        gpu.waited("copies from the host", pageable=not gpu.copies_pinned)


def _unwrap(each: Any) -> Any:
    return each.base if isinstance(each, _Tensor) else each


class _Module(backend_registration._DummyBackendModule):
    """The module that torch expects as `torch.gpu`."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """The dtypes of `torch.autocast("gpu", …)`, which casts nothing here."""
        return [torch.bfloat16, torch.float16]


@cache
def install() -> None:
    """Register the device type ``gpu`` in torch, once and for the life of the process."""
    backend_registration._setup_privateuseone_for_python_backend("gpu", _Module())
    fallback = torch.library.Library("_", "IMPL")  # type: ignore[no-untyped-call]
    fallback.fallback(_run, "PrivateUse1")  # type: ignore[no-untyped-call]
    aten = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    own = {"empty_strided": _empty_strided, "empty.memory_format": _empty, "_copy_from": _copy,
           "scaled_dot_product_attention": _attention, "silu_backward": _silu_backward,
           **dict.fromkeys(("arange", "arange.start", "arange.start_step"), _arange)}  # fmt: skip
    for operator, function in own.items():
        aten.impl(operator, function, "PrivateUse1")  # type: ignore[no-untyped-call]
    for operator, function in {
        "scaled_dot_product_attention": _learning_attention, "native_group_norm": _learning_group_norm,
    }.items():  # fmt: skip
        aten.impl(operator, function, "AutogradPrivateUse1")  # type: ignore[no-untyped-call]
    _kept.extend((fallback, aten))


def _arange(*args: Any, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None) -> _Tensor:
    """torch creates an empty tensor and resizes it, which a wrapper would not notice."""
    gpu, again = _gpu[-1], partial(torch.arange, *args, dtype=dtype)
    gpu.launched("arange")
    made = again()
    _record(gpu, made, again)
    return _Tensor(made)


def _attention(*args: Any, **kwargs: Any) -> Any:
    """The CPU's fused kernel: torch would compose products and a softmax, which differ in the last bits."""
    return _run(torch.ops.aten.scaled_dot_product_attention.default, *args, **kwargs)


def _silu_backward(*args: Any) -> Any:
    """The CPU's kernel, as for attention."""
    return _run(torch.ops.aten.silu_backward.default, *args)


class _Learning(torch.autograd.Function):
    """An operator with the CPU's gradients: the backward pass computes it again with autograd. Called with the operator
    and its arguments: tensors, None, and keywords as one dict.
    """

    @staticmethod
    def forward(ctx: Any, operator: Any, *given: Any) -> Any:
        *tensors, how = given
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)  # an output that nobody used has none
        ctx.operator, ctx.how, ctx.random = operator, how, torch.get_rng_state()  # for dropout
        return _run(operator, *tensors, **how)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        _gpu[-1].launched(f"{ctx.operator.overloadpacket.__name__}_backward")
        _, *wanted, _ = ctx.needs_input_grad
        given: list[Any] = [
            each if each is None else each.base.detach().requires_grad_(learns)
            for each, learns in zip(ctx.saved_tensors, wanted, strict=True)
        ]
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            torch.set_rng_state(ctx.random)
            made = ctx.operator(*given, **ctx.how)
        made = made if isinstance(made, tuple) else (made,)
        learning = [each for each, learns in zip(given, wanted, strict=True) if learns]
        known = [(each, grad.base) for each, grad in zip(made, gradients, strict=True)
                 if grad is not None and each.requires_grad]  # fmt: skip
        found = iter(torch.autograd.grad([each for each, _ in known], learning, [grad for _, grad in known]))
        return None, *(_Tensor(next(found)) if learns else None for learns in wanted), None


def _learning_attention(q: Any, k: Any, v: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
                        **more: Any) -> Any:  # fmt: skip
    how = {"dropout_p": dropout_p, "is_causal": is_causal, **more}
    return _Learning.apply(torch.ops.aten.scaled_dot_product_attention.default, q, k, v, attn_mask, how)  # type: ignore[no-untyped-call]


def _learning_group_norm(x: Any, weight: Any, bias: Any, *sizes: Any) -> Any:
    """On other devices torch makes channels-last tensors contiguous before it computes gradients."""
    how = dict(zip(("N", "C", "HxW", "group", "eps"), sizes, strict=True))
    return _Learning.apply(torch.ops.aten.native_group_norm.default, x, weight, bias, how)  # type: ignore[no-untyped-call]


def _empty_strided(size: Any, stride: Any, dtype: Any = None, layout: Any = None, device: Any = None,
                   pin_memory: Any = None) -> _Tensor:  # fmt: skip
    return _Tensor(torch.empty_strided(size, stride, dtype=dtype, device="cpu"))


def _empty(size: Any, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None,
           memory_format: Any = None) -> _Tensor:  # fmt: skip
    shape = memory_format or torch.contiguous_format
    return _Tensor(torch.empty(size, dtype=dtype, device="cpu", memory_format=shape))


def _copy(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    gpu = _gpu[-1]
    _count_copy(gpu, source, isinstance(target, _Tensor), non_blocking)
    if isinstance(target, _Tensor) and not isinstance(source, _Tensor):
        gpu.copy(source, target.base)
    else:
        to, of = _unwrap(target), _unwrap(source)
        _record(gpu, to.copy_(of), lambda: to.copy_(of), {id(to)})
    return target


def _by_rows(q: Any, k: Any, v: Any, spans: Any, window: int | None, scale: float) -> _Tensor:
    """The device's kernel for spans, in one launch; equals the CPU's result for each request exactly."""
    gpu = _gpu[-1]
    gpu.launched("varlen_attn")
    tensors = [_unwrap(each) for each in (q, k, v, spans.ends, spans.begins, spans.used)]
    again = partial(_row_by_row, spans.most_queries == 1, window, *tensors)
    made = again()
    _record(gpu, made, again)
    return _Tensor(made)


def _blocks(q: Any, k: Any, v: Any, bias: Any, scale: float) -> _Tensor:
    """The device's kernel for packed sequences, in one launch; equals the CPU's result exactly."""
    from studio.attention import attend

    gpu = _gpu[-1]
    gpu.launched("varlen_attn")
    again = partial(attend, *(_unwrap(each)[None] for each in (q, k, v)), bias=bias, scale=scale)
    made = again()[0]
    _record(gpu, made, lambda: again()[0])
    return _Tensor(made)


def _row_by_row(
    single: bool, window: int | None, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ends: torch.Tensor,
    begins: torch.Tensor, used: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    from studio.attention import Causal, attend, attend_rows

    rows = list(zip(ends.tolist(), ends[1:].tolist(), begins.tolist(), used.tolist(), strict=False))
    if single:
        cuts = [slice(begin + max(0, n - (window or n)), begin + n) for _, _, begin, n in rows]
        return attend_rows(q, [k[None, cut] for cut in cuts], [v[None, cut] for cut in cuts])
    made = []
    for first, end, begin, n in rows:
        cut = slice(begin + max(0, n - (end - first) + 1 - (window or n)), begin + n)
        made.append(attend(q[None, first:end], k[None, cut], v[None, cut], bias=Causal(window=window))[0])
    return torch.cat(made)


def _shared(model: torch.nn.Module) -> list[list[tuple[torch.nn.Module, str]]]:
    """For each parameter that several modules share: these modules, and its name in each."""
    places: dict[int, list[tuple[torch.nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                places.setdefault(id(parameter), []).append((module, name))
    return [each for each in places.values() if len(each) > 1]


@contextmanager
def patched(gpu: FakeGpu) -> Iterator[None]:
    """Patch torch for `gpu` within the block. Wrappers cannot be created in inference mode, so it becomes `no_grad`,
    also as a decorator; `tolist` copies, and attention uses the CPU's kernel, so that results are equal. Gradients are
    computed in the calling thread, because torch starts its device threads only once, maybe before this device exists.
    Parameters that modules share stay shared when they move, as on a GPU.
    """
    from studio.attention import spans
    from studio.attention.backends import sdpa, varlen

    tolist, mode = torch.Tensor.tolist, torch.inference_mode
    enter, leave = mode.__enter__, mode.__exit__
    entered: dict[int, Any] = {}

    def enter_no_grad(self: torch.inference_mode) -> None:
        entered[id(self)] = torch.no_grad() if self.mode else nullcontext()
        entered[id(self)].__enter__()

    def leave_no_grad(self: torch.inference_mode, *error: Any) -> None:
        entered.pop(id(self)).__exit__(*error)

    def by_copy(tensor: torch.Tensor) -> Any:
        return tolist(tensor.cpu() if isinstance(tensor, _Tensor) else tensor)

    apply = torch.nn.Module._apply

    def apply_and_tie(self: torch.nn.Module, fn: Any, recurse: bool = True) -> torch.nn.Module:
        shared = _shared(self)
        apply(self, fn, recurse)  # type: ignore[no-untyped-call]
        for (first, name), *others in shared:
            for module, key in others:
                module._parameters[key] = first._parameters[name]
        return self

    load_file = safetensors.torch.load_file

    def load_to_us(filename: Any, device: Any = "cpu", **more: Any) -> dict[str, torch.Tensor]:
        there = torch.device(device).type == "gpu"  # which safetensors does not know
        found = load_file(filename, device="cpu" if there else device, **more)
        return {name: each.to(device) for name, each in found.items()} if there else found

    safetensors.torch.load_file = load_to_us
    torch.nn.Module._apply = apply_and_tie  # type: ignore[method-assign]
    torch.Tensor.tolist = by_copy  # type: ignore[method-assign, assignment]
    mode.__enter__, mode.__exit__ = enter_no_grad, leave_no_grad  # type: ignore[method-assign]
    sdpa.FLASH["gpu"], spans.KERNELS["gpu"], varlen.KERNELS["gpu"] = sdpa.flash_cpu, _by_rows, _blocks
    _gpu.append(gpu)
    try:
        with torch.autograd.set_multithreading_enabled(False):
            yield
    finally:
        _gpu.remove(gpu)
        del sdpa.FLASH["gpu"], varlen.KERNELS["gpu"]
        spans.KERNELS.pop("gpu", None)  # a test may have taken it away
        safetensors.torch.load_file = load_file
        torch.nn.Module._apply = apply  # type: ignore[method-assign]
        torch.Tensor.tolist = tolist  # type: ignore[method-assign]
        mode.__enter__, mode.__exit__ = enter, leave  # type: ignore[method-assign]
