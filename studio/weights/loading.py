"""Torch modules from safetensors files: built without weights, then filled from the mapped file or streamed.

A generator's `load` calls `module`. Parameters are created on torch's meta device, so nothing is initialised or stored
twice; buffers that no file contains (positions, frequencies) are created for real. If the model exceeds the memory
budget of the engine, its layers are streamed (see `studio.weights.streaming`).

Try it: ``studio.module(lambda: torch.nn.Linear(2, 3), [file], device="cpu", dtype="float32")``
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from studio import devices
from studio.errors import WeightsError
from studio.files import check_regular
from studio.weights.checksums import remedy
from studio.weights.headers import TensorBytes

if TYPE_CHECKING:
    import torch

    from studio.weights.streamer import Streamer

M = TypeVar("M", bound="torch.nn.Module")
Rename = Callable[[str], str | None]
SMALL = 64 << 10  # bytes; smaller layers stay on the device
_building = threading.Lock()
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8",
    "BOOL": "bool",
}  # fmt: skip
"""Names of dtypes in safetensors files -> torch's."""


@dataclass
class Streaming:
    """How modules are streamed: submodules up to `limit` bytes as a whole, larger ones in parts.

    `streamer` brings their groups of layers to the device; the host has one for each device.
    """

    limit: int
    streamer: Streamer | None = None

    @property
    def largest(self) -> int:
        """Bytes of the largest group of layers."""
        return self.streamer.largest if self.streamer else 0

    @property
    def passing(self) -> int:
        """Bytes on the device for groups of layers that do not stay."""
        return self.streamer.passing if self.streamer else 0


class ModuleHolder(Protocol):
    """Shares modules among several models."""

    def component(
        self, built: torch.nn.Module, files: Sequence[Path], dtype: object, fill: Callable[[], Any], pack: Pack | None
    ) -> Any:
        """Return the module that is already stored for these arguments, or `built` after calling `fill` and `pack`."""


class Tensors(Protocol):
    """Named tensors in files, read one at a time; `SafetensorsSource` for safetensors."""

    files: Sequence[Path]
    device: str
    dtype: torch.dtype

    @property
    def names(self) -> set[str]:
        """Names of all tensors, as in the module."""

    def check(self, name: str, shape: Sequence[int]) -> None:
        """Raise WeightsError if the tensor has another shape."""

    def read(self, name: str) -> torch.Tensor:
        """A copy of the tensor on the device; floating-point ones are cast."""

    def stored(self, name: str) -> torch.Tensor:
        """The tensor in host memory, in the dtype of the file; it may be a view of the mapped file."""

    def copy_into(self, name: str, memory: torch.Tensor) -> None:
        """Read the tensor into host memory of its shape, cast to the dtype of that."""

    def dtype_of(self, name: str) -> torch.dtype:
        """The dtype that `read` casts the tensor to if it is a floating-point one; that of most is `dtype`."""


Reader = Callable[[Sequence[Path], str, "torch.dtype"], Tensors]


class Pack(Hashable, Protocol):
    """Modifies a filled module in place (quantization); equal ones, by ``==`` and `hash`, modify it equally."""

    def __call__(self, module: Any, /) -> object:
        """Modify it."""


_streaming: ContextVar[Streaming | None] = ContextVar("studio_streaming", default=None)
_holder: ContextVar[ModuleHolder | None] = ContextVar("studio_holder", default=None)


@contextmanager
def hosting(holder: ModuleHolder | None, how: Streaming | None) -> Iterator[None]:
    """Within the block, in this thread, `module` shares through `holder`, and streams if `how` is given."""
    tokens = _streaming.set(how), _holder.set(holder)
    try:
        yield
    finally:
        _streaming.reset(tokens[0])
        _holder.reset(tokens[1])


class _File:
    """An open safetensors file: mapped, and read where pages of the process would count."""

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        self._path, self._bytes = path, cast("TensorBytes | None", None)
        mapped: Any = cast(Any, safe_open)(path, framework="pt")
        self.names: list[str] = list(mapped.keys())
        self.get_tensor: Callable[[str], torch.Tensor] = mapped.get_tensor
        self.get_slice: Callable[[str], Any] = mapped.get_slice

    def read_into(self, name: str, memory: torch.Tensor) -> None:
        """Read a tensor into host memory of its shape, cast to the dtype of that. Raises WeightsError."""
        import torch

        self._bytes = self._bytes or TensorBytes(self._path)
        dtype = getattr(torch, _DTYPES.get(self._bytes.dtype(name), ""), None)
        if dtype is None:
            memory.copy_(self.get_tensor(name))
            return
        direct = memory.dtype == dtype and memory.is_contiguous()
        target = memory if direct else torch.empty(memory.shape, dtype=dtype)
        self._bytes.read_into(name, target.view(-1).view(torch.uint8).numpy().data)
        if target is not memory:
            memory.copy_(target)


class SafetensorsSource:
    """The tensors of safetensors files by their names in the module; mapped, and read one at a time.

    Raises WeightsError for a missing or damaged file, and for a name that is in two files.
    """

    def __init__(self, files: Sequence[Path], rename: Rename | None, device: str, dtype: torch.dtype) -> None:
        from safetensors import SafetensorError

        self.files, self.device, self.dtype = files, device, dtype
        self._places: dict[str, tuple[Path, Any, str]] = {}
        for file in files:
            try:
                check_regular(file)  # opening a pipe would block
                opened = _File(file)
            except (OSError, SafetensorError) as error:
                message = f"the weights `{file}` cannot be read as safetensors: {error}"
                raise WeightsError(file, message, hint=remedy(file)) from error
            for stored in opened.names:
                name = rename(stored) if rename else stored
                if name is None:
                    continue
                if name in self._places:
                    message = f"the tensor `{name}` is in both `{self._places[name][0]}` and `{file}`"
                    raise WeightsError(file, message, hint="give the files of only one model")
                self._places[name] = file, opened, stored

    @property
    def names(self) -> set[str]:
        """Names of all tensors, as in the module."""
        return set(self._places)

    def check(self, name: str, shape: Sequence[int]) -> None:
        """Raise WeightsError if the tensor has another shape."""
        file, opened, stored = self._places[name]
        found = list(opened.get_slice(stored).get_shape())
        if found != list(shape):
            message = (
                f"the tensor `{stored}` of `{file}` has the shape {found}; `{name}` of the module has {list(shape)}"
            )
            hint = "the weights belong to another configuration: use the one in their folder"
            raise WeightsError(file, message, hint=hint)

    def equal(self, name: str, other: str) -> bool:
        """Whether two tensors have equal values; read in blocks of rows."""
        import torch

        one, two = (self._places[each][1].get_slice(self._places[each][2]) for each in (name, other))
        if one.get_shape() != two.get_shape() or one.get_dtype() != two.get_dtype():
            return False
        starts = range(0, next(iter(one.get_shape()), 0), 1024)
        return all(torch.equal(one[start : start + 1024], two[start : start + 1024]) for start in starts)

    def dtype_of(self, name: str) -> torch.dtype:
        """The dtype of floating-point tensors."""
        return self.dtype

    def copy_into(self, name: str, memory: torch.Tensor) -> None:
        """Read the tensor into host memory of its shape, cast to the dtype of that. Raises WeightsError."""
        _, opened, stored = self._places[name]
        opened.read_into(stored, memory)

    def stored(self, name: str) -> torch.Tensor:
        """The tensor in the mapped file."""
        _, opened, stored = self._places[name]
        tensor: torch.Tensor = opened.get_tensor(stored)
        return tensor

    def read(self, name: str) -> torch.Tensor:
        """A copy of the tensor on the device, safe from later changes of the file; floating-point ones are cast."""
        tensor = self.stored(name)
        dtype = self.dtype_of(name) if tensor.is_floating_point() else tensor.dtype
        return devices.device(self.device).send(tensor, dtype)


def module(
    build: Callable[[], M], files: Sequence[Path | str], *, device: str, dtype: str | torch.dtype,
    rename: Rename | None = None, reader: Reader | None = None, pack: Pack | None = None,
) -> M:  # fmt: skip
    """Return the module that `build` makes, with the weights of safetensors files, in evaluation mode and frozen.

    Args:
        build: makes the module from its configuration, with its parameters on the meta device.
        files: the safetensors files that together hold every parameter and saved buffer.
        device: the device of the module: ``cpu``, ``cuda``, ``cuda:1``.
        dtype: the dtype that floating-point tensors are cast to; buffers that no file contains stay as built.
        rename: maps a tensor's name in the file to its name in the module, or to None to skip the tensor.
        reader: opens the files in place of `SafetensorsSource`, for other formats or tensors that are stored in pieces.
        pack: modifies the filled module, such as by quantization; then it is not streamed. A generator that uses it
            names it in its `variant`.

    Raises WeightsError for missing, damaged or ambiguous files, missing or unexpected tensors, and wrong shapes. For
    tied parameters, one name is enough.
    """
    import torch

    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    with _parameters_on_meta():
        made = build()
    paths = [Path(file) for file in files]
    source = reader(paths, device, dtype) if reader else SafetensorsSource(paths, rename, device, dtype)
    tied = _match(made, source)
    how = _streaming.get() if pack is None else None
    if (holder := _holder.get()) is not None:
        return cast(M, holder.component(made, paths, dtype, lambda: _fill(made, source, tied, how).eval(), pack))
    filled = _fill(made, source, tied, how).eval()
    if pack is not None:
        pack(filled)
    return filled


def loaded(made: M, files: Sequence[Path], dtype: object) -> M:
    """Share a module that a library has filled with the weights of these files, as `module` shares its own."""
    holder = _holder.get()
    return made if holder is None else cast(M, holder.component(made, files, dtype, lambda: made, None))


def _fill(made: M, source: Tensors, tied: Mapping[str, Sequence[str]], how: Streaming | None) -> M:
    """Read the tensors that are not streamed; `tied` maps names in the source to the parameters that they fill."""
    import torch

    _move_buffers(made, source)
    kept: set[int] = set()
    if how is not None:
        from studio.weights.streaming import stream

        kept = stream(made, source, {names[0]: source_name for source_name, names in tied.items()}, how)
    for source_name, names in tied.items():
        if id(made.get_parameter(names[0])) in kept:
            continue
        filled = torch.nn.Parameter(source.read(source_name), requires_grad=False)
        for name in names:
            owner, _, leaf = name.rpartition(".")
            made.get_submodule(owner)._parameters[leaf] = filled
    return made


def _match(made: torch.nn.Module, source: Tensors) -> dict[str, list[str]]:
    """Name in the source -> names of the (tied) parameters that it fills. Raises WeightsError."""
    alike: defaultdict[int, list[str]] = defaultdict(list)
    for name, parameter in made.named_parameters(remove_duplicate=False):
        alike[id(parameter)].append(name)
    matched, missing = {}, []
    for names in alike.values():
        found = next((name for name in names if name in source.names), None)
        if found is None:
            missing.append(names[0])
            continue
        source.check(found, made.get_parameter(found).shape)
        matched[found] = names
    saved = set(_saved_buffers(made))
    missing += sorted(saved - source.names)
    unexpected = sorted(source.names - saved - {name for names in alike.values() for name in names})
    if missing or unexpected:
        lack = f"lack {_list(missing)}" if missing else ""
        more = f"have the unexpected {_list(unexpected)}" if unexpected else ""
        where = ", ".join(f"`{file}`" for file in source.files)
        message = (
            f"the weights {where} do not fit `{type(made).__name__}`: they {' and '.join(filter(None, (lack, more)))}"
        )
        hint = "use the matching configuration, or map their names with `rename`"
        raise WeightsError(source.files[0] if source.files else Path(), message, hint=hint)
    return matched


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"`{name}`" for name in names[:3]) + more


def _saved_buffers(made: torch.nn.Module) -> Iterator[str]:
    for prefix, owner in made.named_modules():
        for leaf in owner._buffers.keys() - owner._non_persistent_buffers_set:
            if owner._buffers[leaf] is not None:
                yield f"{prefix}.{leaf}" if prefix else leaf


def _move_buffers(made: torch.nn.Module, source: Tensors) -> None:
    """Fill persistent buffers from the source, and move the others to the device as built.

    Raises WeightsError for non-finite values: an infinite variance gives finite but wrong results.
    """
    for prefix, owner in made.named_modules():
        for leaf, buffer in owner._buffers.items():
            name = f"{prefix}.{leaf}" if prefix else leaf
            if buffer is None:
                continue
            if leaf in owner._non_persistent_buffers_set:
                owner._buffers[leaf] = buffer.to(source.device)
            else:
                source.check(name, buffer.shape)
                owner._buffers[leaf] = found = source.read(name)
                if found.is_floating_point() and not bool(found.isfinite().all()):
                    message = f"`{name}` of `{source.files[0]}` has non-finite values in {found.dtype}"
                    raise WeightsError(
                        source.files[0], message.replace("torch.", ""), hint="download the model again, or try float32"
                    )


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Create parameters of modules of this thread on the meta device; buffers stay real.

    accelerate's `init_empty_weights` gives equal modules in equal time, but for all threads: a module that another one
    builds meanwhile would be on the meta device too.
    """
    import torch

    mine, register = threading.get_ident(), torch.nn.Module.register_parameter

    def registering(self: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        if parameter is not None and threading.get_ident() == mine and not parameter.is_meta:
            parameter = torch.nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(self, name, parameter)

    with _building:  # one at a time changes torch's class
        torch.nn.Module.register_parameter = registering  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            torch.nn.Module.register_parameter = register  # type: ignore[method-assign]
