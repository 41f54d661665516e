"""Pipelines from folders in diffusers' layout: ``model_index.json`` and a folder for each component.

Every component is loaded by `studio.loaders`, which runs no code of the model. Its modules become components of the
host: shared with other models whose files are equal, offloaded and counted.

Try it: ``load(Path("folder"), "cpu", "float32")``
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import studio
from studio.diffusion import layout, single_files
from studio.diffusion.additions import NOTHING, Additions, Changed, joined
from studio.diffusion.stepping import PipelineModel
from studio.errors import WeightsError
from studio.loaders import components as kinds
from studio.loaders import diffusers as loaders
from studio.loaders.ip_adapters import image_encoder
from studio.loaders.single_file import gguf_module
from studio.weights.loading import SafetensorsSource, loaded


def weight_files(path: Path, additions: Additions = NOTHING) -> list[Path]:
    """All files on which the output of a model, a folder or a single file, depends. Raises WeightsError."""
    with single_files.opened(path, additions.base) as (folder, held):
        index = layout.index_of(folder)
        found = [held.path] if held else [folder / layout.INDEX]
        for name, value in layout.components(folder, index).items():
            place = layout.part(folder, name)
            if name == "vae" and additions.vae is not None:
                found += layout.texts_of(place) if additions.vae_file and folder in (path, additions.base) else []
                continue
            kind = kinds.component_class(folder / layout.INDEX, name, value)
            if folder in (path, additions.base):
                found += layout.texts_of(place)
            if issubclass(kind, nn.Module) and not (held and held.has(name, kind, place)):
                found += layout.weights_of(place) if held is None else held.rest_of(name, place)
        if additions.ip_adapters and "image_encoder" not in layout.components(folder, index):
            encoder = image_encoder(additions.ip_adapters[0][0])
            found += [*layout.texts_of(encoder), *layout.weights_of(encoder)]
    return list(dict.fromkeys(found + additions.files))


def load(path: Path, device: str, dtype: str, additions: Additions = NOTHING) -> PipelineModel:
    """Load the pipeline of a folder or of a single file. Raises WeightsError."""
    with single_files.opened(path, additions.base) as (folder, held):
        index_path = folder / layout.INDEX
        index = layout.index_of(folder)
        kind = kinds.pipeline_class(index_path, index["_class_name"])
        found = {name: (kinds.component_class(index_path, name, value), layout.part(folder, name))
                 for name, value in layout.components(folder, index).items()}  # fmt: skip
        own = dict(found)
        kind, found = additions.replaced(kind, found)
        changed = additions.changed(kind, found, partial(weight_files, path, additions))
        parts = {}
        for name, (each, where) in found.items():
            mine = changed if name in changed.names else None
            inside = held if held and own.get(name) == (each, where) and held.has(name, each, where) else None
            if name == "vae" and additions.vae_file:
                inside = single_files.vae_of(additions.vae_file, each, where)
            elif held and own.get(name) == (each, where) and not inside and issubclass(each, nn.Module):
                held.rest_of(name, where)
            parts[name] = component(each, where, device, getattr(torch, dtype), mine, inside)
        pipe = loaders.pipeline(kind, index, index_path, joined(parts))
        changed.apply(pipe, additions)
    return PipelineModel(pipe, device)


def component(
    kind: type, folder: Path, device: str, dtype: torch.dtype, changed: Changed | None = None,
    held: single_files.Held | None = None,
) -> Any:  # fmt: skip
    """One component of a pipeline: a module with its weights, or a scheduler, tokenizer or processor.

    `held` is the single file that has the weights in place of the folder. Raises WeightsError.
    """
    if not issubclass(kind, nn.Module):
        return kinds.other(kind, folder)
    if held is None:
        return module(kind, folder, layout.weights_of(folder), device, dtype, changed)
    if held.is_gguf:
        return loaded(gguf_module(kind, held.path, folder, dtype).to(device), [held.path], dtype)
    return module(kind, folder, [held.path], device, dtype, changed, held)


def module(
    kind: type, config: Path, files: Sequence[Path], device: str, dtype: torch.dtype, changed: Changed | None = None,
    held: single_files.Held | None = None,
) -> Any:  # fmt: skip
    """A module of the config in the folder `config` and these safetensors. Raises WeightsError.

    Where the config says so, a VAE is in float32 if `dtype` is float16, which its values exceed.
    """
    if dtype == torch.float16 and loaders.upcasts(kind, config):
        dtype = torch.float32
    return _Loading(kind, config, held).module(files, device, dtype, changed)


class _Loading:
    """A module that is being loaded: `studio.module` calls `build`, then `read`."""

    def __init__(self, kind: type, config: Path, held: single_files.Held | None) -> None:
        self.kind, self.config, self.held = kind, config, held
        self.built: Any = None

    def module(self, files: Sequence[Path], device: str, dtype: torch.dtype, changed: Changed | None) -> Any:
        def build() -> nn.Module:
            made: nn.Module = kinds.build(self.kind, self.config, dtype)
            for child in made.children() if loaders.upcasts(self.kind, self.config) else ():
                child.register_forward_pre_hook(_in_its_dtype)
            self.built = made
            return made

        return studio.module(build, files, device=device, dtype=dtype, reader=self.read, pack=changed)

    def read(self, files: Sequence[Path], device: str, dtype: torch.dtype) -> PipelineTensors:
        stored = (
            SafetensorsSource(files, None, device, dtype) if self.held is None else self.held.source(self.built, dtype)
        )
        names = kinds.stored_names(self.built, stored.names)
        kinds.untie(self.built, {new: old for old, new in names.items() if new}, stored.equal)
        return PipelineTensors(stored, names, device, kinds.float32_parts(self.built, dtype))


def _finite(tensor: Tensor) -> bool:
    """Whether all values are finite; the sum, which is finite if they are and none is huge, needs no memory."""
    return bool(torch.isfinite(tensor.sum(dtype=torch.float32))) or bool(torch.isfinite(tensor).all())


def _in_its_dtype(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Cast the inputs of a float32 module in a float16 pipeline."""
    own = next(module.parameters(), None)
    if own is None:
        return args
    return tuple(each.to(own.dtype) if isinstance(each, Tensor) and each.is_floating_point() else each for each in args)


class PipelineTensors(SafetensorsSource):
    """The tensors of a pipeline's component by their names in the module.

    Tensors with one of the `float32` names among the parts of theirs are read in float32. Raises WeightsError for a
    tensor with NaN or infinity.
    """

    def __init__(
        self, stored: SafetensorsSource, names: Mapping[str, str | None], device: str, float32: frozenset[str]
    ) -> None:
        self.files, self.device, self.dtype = stored.files, device, stored.dtype
        self._places = {new: place for old, place in stored._places.items() if (new := names[old]) is not None}
        self._float32 = float32
        self._finite: set[str] = set()  # names of tensors that were checked

    def dtype_of(self, name: str) -> torch.dtype:
        """The dtype in which a floating-point tensor is read."""
        return torch.float32 if self._float32.intersection(name.split(".")) else self.dtype

    def read(self, name: str) -> Tensor:
        """A copy of the tensor on the device. Raises WeightsError for NaN and infinity."""
        found = super().read(name)
        self._check(name, found)
        return found

    def copy_into(self, name: str, memory: Tensor) -> None:
        """Read the tensor into host memory. Raises WeightsError for NaN and infinity."""
        super().copy_into(name, memory)
        self._check(name, memory)

    def _check(self, name: str, found: Tensor) -> None:
        """Raise WeightsError for NaN and infinity; each tensor is checked once."""
        if name in self._finite or not found.is_floating_point():
            return
        if not _finite(found):
            wide = _finite(self.stored(name).float())
            hint = "load it in float32 or bfloat16" if wide else "download the model again, or use another"
            message = f"the tensor `{name}` of `{self.files[0].parent}` has NaN or infinity in {str(found.dtype)[6:]}"
            raise WeightsError(self.files[0], message, hint=hint)
        self._finite.add(name)
