"""Models in one file: Stable Diffusion 1, 2 and XL as they are; others with a folder that has what the file lacks.

The tensors' names and shapes tell the family. Its configs are in ``configs/``; they were written from the published
ones. What is ambiguous, such as the prediction type of a Stable Diffusion 2, is refused.

Try it: ``family_of(Path("sd_xl_base_1.0.safetensors"))``
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from studio.diffusion import layout
from studio.errors import WeightsError
from studio.loaders import components as kinds
from studio.loaders import scratch
from studio.loaders.adapters import tensors_of
from studio.loaders.single_file import tensors_for, write_clip_tokenizer
from studio.weights.loading import SafetensorsSource

CONFIGS = Path(__file__).parent / "configs"
_NET = "model.diffusion_model."
_IN = f"{_NET}input_blocks.0.0.weight"
_SD1 = "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight"
_SD2 = "cond_stage_model.model.positional_embedding"
_XL, _XL_TEXT = "conditioner.embedders.1.model.positional_embedding", "conditioner.embedders.0.transformer.text_model"
_REFINER = "conditioner.embedders.0.model.positional_embedding"
_BASE = "name a folder of the same model as `base`"


def family_of(path: Path, tensors: Mapping[str, Any], header: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """The name of the configs of a file's family, and what of its scheduler's config is different.

    Raises WeightsError for a family that cannot be recognised.
    """
    channels = tensors[_IN].shape[1] if _IN in tensors else 0
    if _SD1 in tensors and channels in (4, 9):
        return ("sd1" if channels == 4 else "sd1-inpaint"), {}
    if _SD2 in tensors and channels == 4:
        return "sd2", {"prediction_type": _prediction(path, header)}
    if _XL in tensors and channels in (4, 9):
        return ("sdxl" if channels == 4 else "sdxl-inpaint"), _of_xl(tensors)
    if _REFINER in tensors and channels == 4:
        return "sdxl-refiner", {}
    raise WeightsError(path, f"`{path}` is of no family that is known whole: it has {_found(tensors)}", hint=_BASE)


def _prediction(path: Path, header: Mapping[str, str]) -> str:
    named = {"v": "v_prediction", "epsilon": "epsilon"}.get(header.get("modelspec.prediction_type", ""))
    if named is None:
        message = f"`{path}` is a Stable Diffusion 2, but does not say whether it predicts epsilon or v"
        raise WeightsError(path, message, hint=_BASE)
    return named


def _of_xl(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Trainers mark a model that predicts v, and one with zero terminal SNR, by an empty tensor."""
    found: dict[str, Any] = {"prediction_type": "v_prediction"} if "v_pred" in tensors else {}
    return found | ({"rescale_betas_zero_snr": True} if "ztsnr" in tensors else {})


def _found(tensors: Mapping[str, Any]) -> str:
    names = sorted(tensors)
    return f"{len(names)} tensors such as " + " and ".join(
        f"`{name:.60}`" for name in names[:: max(1, len(names) - 1)][:2]
    )


class Held:
    """A single file with weights of a model's components."""

    def __init__(self, path: Path) -> None:
        """Open the file. Raises WeightsError."""
        self.path, self.is_gguf = path, path.suffix.lower() == ".gguf"
        self.tensors, self.header = ({}, {}) if self.is_gguf else tensors_of(path)
        self._known: dict[str, bool] = {}

    def has(self, name: str, kind: type, config: Path) -> bool:
        """Whether the file has the weights of a component, a module of a class and config, or of the denoiser if it is
        a GGUF file.
        """
        if not issubclass(kind, torch.nn.Module):
            return False
        if self.is_gguf:
            return name in ("transformer", "unet")
        if name not in self._known:
            with torch.device("meta"):
                module = kinds.build(kind, config, torch.float32)
                shapes = {each: torch.empty(tensor.shape, dtype=tensor.dtype) for each, tensor in self.tensors.items()}
                self._known[name] = tensors_for(module, shapes) is not None
        return self._known[name]

    def rest_of(self, name: str, folder: Path) -> list[Path]:
        """The weights in a folder of a component that the file lacks. Raises WeightsError if there are none."""
        if found := layout.tensors_of(folder):
            return found
        message = f"`{self.path}` has no whole `{name}` of its family, and nothing else has it"
        raise WeightsError(self.path, message, hint=_BASE)

    def source(self, module: Any, dtype: torch.dtype) -> SafetensorsSource:
        """The tensors of a module that the file has."""
        found = tensors_for(module, self.tensors)
        assert found is not None, "`has` said so"
        return InMemory([self.path], found, dtype)


def vae_of(path: Path, kind: type, config: Path) -> Held:
    """A file with the weights of a VAE of this class and config. Raises WeightsError for another."""
    held = Held(path)
    if not held.has("vae", kind, config):
        message = f"`{path}` has no whole VAE of this model's form, a `{kind.__name__}`: it has {_found(held.tensors)}"
        raise WeightsError(path, message, hint="use a VAE of the same family")
    return held


class InMemory(SafetensorsSource):
    """Tensors that are in memory or mapped, by their names in a module's files."""

    def __init__(self, files: Sequence[Path], tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> None:
        self.files, self.device, self.dtype = files, "cpu", dtype
        self._places = {name: (files[0], self, name) for name in tensors}
        self._tensors = tensors

    def get_tensor(self, name: str) -> torch.Tensor:
        """As an open safetensors file does."""
        return self._tensors[name]

    def get_slice(self, name: str) -> Any:
        """As an open safetensors file does."""
        return _Slice(self._tensors[name])

    def read_into(self, name: str, memory: torch.Tensor) -> None:
        """As an open safetensors file does."""
        memory.copy_(self._tensors[name])


class _Slice:
    def __init__(self, tensor: torch.Tensor) -> None:
        self.get_shape, self.get_dtype = lambda: list(tensor.shape), lambda: tensor.dtype
        self._tensor = tensor

    def __getitem__(self, rows: slice) -> torch.Tensor:
        return self._tensor[rows]


@contextmanager
def opened(path: Path, base: Path | None) -> Iterator[tuple[Path, Held | None]]:
    """The folder in diffusers' layout of a model, and the single file that has weights in place of the folder's.

    Raises WeightsError for a file of unknown family, and for one that has no component of the base.
    """
    file = path if path.is_file() else layout.only_file(path)
    if file is None:
        yield path, None
        return
    held = Held(file)
    if base is not None:
        _check(held, base)
        yield base, held
        return
    if held.is_gguf:
        raise WeightsError(file, f"`{file}` has only the denoiser of a model", hint=_BASE)
    family, scheduler = family_of(file, held.tensors, held.header)
    with configs(family, scheduler) as folder:
        yield folder, held


def _check(held: Held, base: Path) -> None:
    """Raise WeightsError if no component of the base is in the file."""
    index = layout.index_of(base)
    found = {name: kinds.component_class(base / layout.INDEX, name, value)
             for name, value in layout.components(base, index).items()}  # fmt: skip
    if not any(held.has(name, kind, layout.part(base, name)) for name, kind in found.items()):
        message = (
            f"`{held.path}` has no component of `{base}`, a `{index['_class_name']}`: it has {_found(held.tensors)}"
        )
        raise WeightsError(held.path, message, hint="give the folder of the same model, or another file")


@contextmanager
def configs(family: str, scheduler: Mapping[str, Any]) -> Iterator[Path]:
    """A temporary folder in diffusers' layout without weights: the configs of a family, and CLIP's tokenizer."""
    content = json.loads((CONFIGS / f"{family}.json").read_text("utf-8"))
    with scratch() as made:
        for name, values in content.items():
            if name.startswith("tokenizer"):
                write_clip_tokenizer(made / name, values)
                continue
            place = {"model_index": made / "model_index.json", "scheduler": made / name / "scheduler_config.json"}.get(
                name, made / name / "config.json"
            )
            place.parent.mkdir(exist_ok=True)
            place.write_text(json.dumps(values | scheduler if name == "scheduler" else values), "utf-8")
        yield made
