"""Components of diffusers pipelines from untrusted folders: which classes may be loaded, and how.

A component's class is one that diffusers or transformers export, with a base class below. A module is built from its
config without weights; `stored_names` maps the names of its files to its parameters by the libraries' own rules for
files of older versions.

Try it: ``component_class(path, "unet", ["diffusers", "UNet2DConditionModel"])``
"""

from __future__ import annotations

import importlib.util
import re
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from studio.devices import torch_setup
from studio.errors import WeightsError
from studio.loaders import check_size, transformers
from studio.loaders import diffusers as of_diffusers

_BASES = {
    "diffusers": ("ModelMixin", "SchedulerMixin"),
    "transformers": ("PreTrainedModel", "PreTrainedTokenizerBase", "ProcessorMixin", "ImageProcessingMixin",
                     "FeatureExtractionMixin"),
}  # fmt: skip
_FORMER = {"CLIPFeatureExtractor": "CLIPImageProcessor"}
"""Names in folders of older transformers that the library no longer has."""


def component_class(path: Path, name: str, value: list[Any]) -> type:
    """The class that `model_index.json` at `path` has for a component, as [library, class].

    Raises WeightsError for one that is not a component of these libraries, or needs a package that is not installed.
    """
    library, kind = value
    found = _exported(library, _FORMER.get(kind, kind))
    if isinstance(found, type) and (packages := _lacking(found)):
        message = f"`{name}` of `{path.parent}` is a `{kind}`, which needs {_listed(packages)}"
        raise WeightsError(path, message, hint=f"pip install {' '.join(packages)}")
    if not isinstance(found, type) or not any(issubclass(found, base) for base in _bases()):
        named = f"{library:.60}.{kind:.60}"
        message = f"`{name}` of `{path.parent}` is a `{named}`, which the installed diffusers does not have"
        raise WeightsError(path, message, hint="use a model of diffusers' own classes, or a newer diffusers")
    return found


def pipeline_class(path: Path, kind: str) -> type:
    """The pipeline class of diffusers of this name, which `model_index.json` at `path` has. Raises WeightsError."""
    found = _exported("diffusers", kind)
    if isinstance(found, type) and (packages := _lacking(found)):
        message = f"`{path.parent}` is a `{kind}`, which needs {_listed(packages)}"
        raise WeightsError(path, message, hint=f"pip install {' '.join(packages)}")
    if not isinstance(found, type) or not is_a(found, "DiffusionPipeline"):
        message = f"`{path.parent}` is a `{kind:.80}`, a pipeline which the installed diffusers does not have"
        raise WeightsError(path, message, hint="use a model of diffusers' own pipelines, or a newer diffusers")
    return found


def find_pipeline(kind: str) -> type | None:
    """The pipeline class of diffusers of this name, or None."""
    found = _exported("diffusers", kind)
    return found if isinstance(found, type) and is_a(found, "DiffusionPipeline") else None


def is_a(kind: type, base: str) -> bool:
    """Whether a class derives from this base class of diffusers or transformers."""
    return any(each.__name__ == base for each in kind.__mro__)


def _bases() -> Iterator[type]:
    import diffusers
    import transformers as library

    yield from (getattr(diffusers, name) for name in _BASES["diffusers"])
    yield from (getattr(library, name) for name in _BASES["transformers"])


def _exported(library: str, kind: str) -> Any:
    """A name of diffusers, transformers or a package of diffusers' pipelines, or None. Imports nothing else."""
    torch_setup.prepare()  # files are listed before a model is loaded
    import diffusers
    import transformers as of_transformers

    if library == "diffusers":
        return getattr(diffusers, kind, None)
    if library == "transformers":
        return getattr(of_transformers, kind, None)
    if not library.isidentifier():
        return None
    for package in ("diffusers.pipelines", "diffusers.pipelines.deprecated"):  # folders name modules that have moved
        if importlib.util.find_spec(f"{package}.{library}") is not None:
            return getattr(importlib.import_module(f"{package}.{library}"), kind, None)
    return None


def _lacking(kind: type) -> list[str]:
    """The packages that are not installed, of a class that the library replaced by a placeholder for want of them."""
    if "dummy_" not in kind.__module__ and type(kind).__name__ != "DummyObject":
        return []
    known = {"note_seq": "note-seq"}
    needs = [str(each) for each in getattr(kind, "_backends", ())]
    return [known.get(each, each) for each in needs if importlib.util.find_spec(each) is None] or needs


def _listed(packages: list[str]) -> str:
    return "the package " + " and ".join(f"`{each}`" for each in packages)


def build(kind: type, folder: Path, dtype: Any) -> Any:
    """A module of a class from `component_class`, without weights. Raises WeightsError.

    Tables that it computes of its config are made in `dtype`, as the libraries' own loaders do.
    """
    if is_a(kind, "PreTrainedModel"):
        config = transformers.config(kind.config_class, folder)  # type: ignore[attr-defined]
        made = partial(transformers.built, kind, config, folder)
        check_size(folder / "config.json", made)
    else:
        made = partial(of_diffusers.module, kind, folder)
    with _default_dtype(dtype):
        return made()


@contextmanager
def _default_dtype(dtype: Any) -> Iterator[None]:
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def stored_names(module: Any, names: Collection[str]) -> dict[str, str | None]:
    """For each name of a tensor in the module's files its name in the module, or None if the module ignores it."""
    renamed = (
        _of_transformers(module, names) if hasattr(module, "all_tied_weights_keys") else _of_diffusers(module, names)
    )
    patterns = [re.compile(each) for each in getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()]
    known = module.state_dict().keys()
    computed = {name for name, _ in module.named_buffers()} - known

    def is_ignored(name: str) -> bool:
        return name not in known and (_is_computed(name, computed) or any(each.search(name) for each in patterns))

    return {stored: None if is_ignored(name) else name for stored, name in renamed.items()}


def _is_computed(name: str, computed: Collection[str]) -> bool:
    """Whether a tensor is a buffer that older versions saved and newer ones compute."""
    return name in computed or bool(computed and re.search(r"(^|\.)(position_ids|rotary_emb\.inv_freq)$", name))


def _of_diffusers(module: Any, names: Collection[str]) -> dict[str, str]:
    moved: OrderedDict[str, str] = OrderedDict((name, name) for name in names)
    module._fix_state_dict_keys_on_load(moved)  # it moves values to other keys, whatever they are
    return {stored: name for name, stored in moved.items()}


def _of_transformers(module: Any, names: Collection[str]) -> dict[str, str]:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    renamings = [each for each in get_model_conversion_mapping(module) if isinstance(each, WeightRenaming)]
    state: Mapping[str, Any] = module.state_dict()
    return {name: rename_source_key(name, renamings, [], module.base_model_prefix, dict(state))[0] for name in names}


def untie(module: Any, stored: Mapping[str, str], equal: Callable[[str, str], bool]) -> None:
    """Untie parameters of a model of transformers for which its files have unlike tensors, as the library does.

    `stored` maps names in the module to names in the files; `equal` compares two of the files' tensors.
    """
    import torch

    for one, other_one in dict(getattr(module, "all_tied_weights_keys", None) or {}).items():
        if one in stored and other_one in stored and not equal(stored[one], stored[other_one]):
            owner, _, leaf = one.rpartition(".")
            own = torch.nn.Parameter(torch.empty_like(module.get_parameter(one), device="meta"), requires_grad=False)
            module.get_submodule(owner)._parameters[leaf] = own
            module.all_tied_weights_keys.pop(one)


def float32_parts(module: Any, dtype: Any) -> frozenset[str]:
    """The parts of names whose tensors the library keeps in float32 when it loads the module in `dtype`."""
    import torch

    kept = set(getattr(module, "_keep_in_fp32_modules", None) or ())
    if is_a(type(module), "PreTrainedModel"):
        kept = kept if dtype == torch.float16 else set()
        kept |= set(getattr(module, "_keep_in_fp32_modules_strict", None) or ())
    return frozenset(kept) if dtype in (torch.float16, torch.bfloat16) else frozenset()


def other(kind: type, folder: Path) -> Any:
    """A component without weights: a scheduler, tokenizer or processor. Raises WeightsError."""
    if is_a(kind, "SchedulerMixin"):
        return of_diffusers.scheduler(kind, folder)
    return transformers.processor(kind, folder)
