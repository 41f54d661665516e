"""Pipelines from folders in diffusers' layout: ``model_index.json`` and a folder for each component.

Every component is loaded by `studio.loaders`, which runs no code of the model. Its modules become components of the
host: shared with other models whose files are equal, offloaded and counted.

Try it: ``load(Path("folder"), "cpu", "float32")``
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import studio
from studio.diffusion import layout
from studio.diffusion.additions import NOTHING, Additions, Changed
from studio.diffusion.stepping import PipelineModel
from studio.errors import WeightsError
from studio.loaders import components as kinds
from studio.loaders import diffusers as loaders
from studio.weights.loading import SafetensorsSource


def weight_files(folder: Path, additions: Additions = NOTHING) -> list[Path]:
    """All files on which a model's output depends. Raises WeightsError."""
    index = layout.index_of(folder)
    found = [folder / layout.INDEX]
    for name, (_, kind) in layout.components(index).items():
        if name == "vae" and additions.vae is not None:
            continue
        place = layout.part(folder, name)
        found += layout.texts_of(place)
        if not kind.endswith(_WITHOUT_WEIGHTS):
            found += layout.weights_of(place)
    return list(dict.fromkeys(found + additions.files))


_WITHOUT_WEIGHTS = ("Scheduler", "Tokenizer", "TokenizerFast", "Processor", "ProcessorFast", "Extractor")


def load(folder: Path, device: str, dtype: str, additions: Additions = NOTHING) -> PipelineModel:
    """Load the pipeline of a folder. Raises WeightsError."""
    index, path = layout.index_of(folder), folder / layout.INDEX
    kind = kinds.pipeline_class(path, index["_class_name"])
    found = {name: (kinds.component_class(path, name, value), layout.part(folder, name))
             for name, value in layout.components(index).items()}  # fmt: skip
    kind, found = additions.replaced(kind, found)
    changed = additions.changed(kind, found, weight_files(folder, additions))
    parts = {name: component(each, place, device, getattr(torch, dtype), changed if name in changed.names else None)
             for name, (each, place) in found.items()}  # fmt: skip
    pipe = loaders.pipeline(kind, index, path, parts)
    changed.apply(pipe, additions)
    return PipelineModel(pipe, device)


def component(kind: type, folder: Path, device: str, dtype: torch.dtype, changed: Changed | None = None) -> Any:
    """One component of a pipeline: a module with its weights, or a scheduler, tokenizer or processor.

    Raises WeightsError.
    """
    if not issubclass(kind, nn.Module):
        return kinds.other(kind, folder)
    return module(kind, folder, layout.weights_of(folder), device, dtype, changed)


def module(
    kind: type, config: Path, files: Sequence[Path], device: str, dtype: torch.dtype, changed: Changed | None = None
) -> Any:
    """A module of the config in the folder `config` and these safetensors. Raises WeightsError.

    Where the config says so, a VAE is in float32 if `dtype` is float16, which its values exceed.
    """
    if dtype == torch.float16 and loaders.upcasts(kind, config):
        dtype = torch.float32
    return _Loading(kind, config).module(files, device, dtype, changed)


class _Loading:
    """A module that is being loaded: `studio.module` calls `build`, then `read`."""

    def __init__(self, kind: type, config: Path) -> None:
        self.kind, self.config = kind, config
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
        stored = SafetensorsSource(files, None, device, dtype)
        names = kinds.stored_names(self.built, stored.names)
        kinds.untie(self.built, {new: old for old, new in names.items() if new}, stored.equal)
        return PipelineTensors(files, names, device, dtype, kinds.float32_parts(self.built, dtype))


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
        self, files: Sequence[Path], names: Mapping[str, str | None], device: str, dtype: torch.dtype,
        float32: frozenset[str],
    ) -> None:  # fmt: skip
        super().__init__(files, names.__getitem__, device, dtype)
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
