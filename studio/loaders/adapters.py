"""LoRA and textual inversion for pipelines of diffusers, from untrusted safetensors files.

diffusers converts the names of many trainers (its own, PEFT's, kohya's) and warns about what it does not use; here
everything must be used, or loading fails. Only tensors are read of a file, and the ranks and scales in its header.

Try it: ``load_loras(pipe, [(Path("style.safetensors"), 0.8)])``
"""

from __future__ import annotations

import json
import logging
import re
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from studio.errors import WeightsError
from studio.files import check_regular
from studio.loaders import offline, read_config, scratch

_METADATA = "lora_adapter_metadata"  # of diffusers: the configuration of each component's adapter
_KNOWN = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules", "use_rslora", "lora_bias", "bias")
_FACTOR = re.compile(r"[._](lora_A|lora_down|lora\.down|down|lora_embedding_A)(\.default)?(\.weight)?$")
_MISMATCH = re.compile(r"size mismatch for (\S+): .*?torch\.Size\((\[[^]]*\])\).*?torch\.Size\((\[[^]]*\])\)")
_LOKR = re.compile(r"\.lokr_w1(_a)?$")
_TEXT = re.compile(r"(base_model\.model\.)?(text_encoder|lora_te|text_model)")
_NONE = "No LoRA keys associated to"  # a component that a LoRA does not change
_OTHER = "use an adapter that was trained for this model"


def tensors_of(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The tensors and the header's texts of a safetensors file. Raises WeightsError."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        check_regular(path)
        with safe_open(path, framework="pt") as opened:
            header = dict(opened.metadata() or {})
        return load_file(path), header
    except (OSError, SafetensorError) as error:
        pickled = path.suffix in (".bin", ".pt", ".pth", ".ckpt")
        reason = "it is a pickle, which can run code" if pickled else str(error)[:120]
        raise WeightsError(path, f"`{path}` cannot be read as safetensors: {reason}",
                           hint="convert it to safetensors, or download it again") from error  # fmt: skip


def changes_text_encoder(path: Path) -> bool:
    """Whether a LoRA, a file or a folder, changes text encoders and not only the denoiser. Raises WeightsError."""
    from safetensors import SafetensorError, safe_open

    file = lora_file(path)
    try:
        check_regular(file)
        with safe_open(file, framework="numpy") as opened:
            return any(_TEXT.match(name) for name in opened.keys())  # noqa: SIM118  # it is no mapping
    except (OSError, SafetensorError) as error:
        raise WeightsError(file, f"`{file}` cannot be read as safetensors: {str(error)[:120]}") from error


def lora_file(path: Path) -> Path:
    """The safetensors file of a LoRA, which is a file or a folder with one. Raises WeightsError."""
    if not path.is_dir():
        return path
    found = [path / name for name in ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")]
    found = [each for each in found if each.exists()] or sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        raise WeightsError(path, f"`{path}` has {len(found)} safetensors files; a LoRA is one", hint="give the file")
    return found[0]


def load_loras(pipe: Any, loras: Sequence[tuple[Path, float]]) -> None:
    """Add LoRAs to the modules of a pipeline, each with a weight, as diffusers' `set_adapters` does.

    Raises WeightsError for a LoRA of another base model, and for layers that the pipeline does not have.
    """
    if find_spec("peft") is None:
        raise WeightsError(loras[0][0], "a LoRA needs the package `peft`", hint="pip install peft")
    if not hasattr(pipe, "load_lora_weights"):
        raise WeightsError(loras[0][0], f"a `{type(pipe).__name__}` takes no LoRA", hint="use another model")
    for i, (path, _) in enumerate(loras):
        _load_one(pipe, lora_file(path), f"studio_{i}")
    pipe.set_adapters([f"studio_{i}" for i in range(len(loras))], [weight for _, weight in loras])
    for name in lora_modules(pipe):
        getattr(pipe, name).requires_grad_(False).eval()


def lora_modules(pipe: Any) -> list[str]:
    """The components that a LoRA may change."""
    return [name for name in getattr(pipe, "_lora_loadable_modules", ()) if getattr(pipe, name, None) is not None]


def _load_one(pipe: Any, path: Path, adapter: str) -> None:
    tensors, header = tensors_of(path)
    tensors = _of_peft(pipe, path, tensors)
    with reporting() as reported, scratch() as made, offline(path):
        try:
            converted = _converted(pipe, tensors)
            pipe.load_lora_weights(_source(tensors, header, made, path), adapter_name=adapter)
        except (ValueError, RuntimeError, LookupError, TypeError, AttributeError) as error:
            raise _unfit(pipe, path, error) from error
    wanted, used = _layers(converted), _used(pipe, adapter)
    unused = sorted(name for name in wanted if name not in used)
    if unused or not wanted:
        what = f"{len(unused)} of its {len(wanted)} layers are unknown, such as `{unused[0]}`" if unused else "no layer"
        raise WeightsError(path, f"the LoRA `{path}` does not fit this `{type(pipe).__name__}`: {what}", hint=_OTHER)
    if reported:
        raise WeightsError(path, f"diffusers does not use all of the LoRA `{path}`: {reported[0][:200]}", hint=_OTHER)


def _unfit(pipe: Any, path: Path, error: Exception) -> WeightsError:
    lines = str(error).strip().splitlines()
    plain = isinstance(error, ValueError | RuntimeError) and lines
    reason = lines[0][:200] if plain else "its layers have other names"
    if found := _MISMATCH.search(str(error)):
        layer, theirs, ours = found[1].replace(".studio_", " ").split(" ")[0], found[2], found[3]
        reason = f"its `{layer}` has the shape {theirs}, the model's has {ours}"
    return WeightsError(
        path, f"the LoRA `{path}` does not fit this `{type(pipe).__name__}`: {reason[:200]}", hint=_OTHER
    )


def _source(tensors: dict[str, Any], header: Mapping[str, str], folder: Path, path: Path) -> Any:
    """The input for diffusers: the tensors, or a file if a header is needed too."""
    if _METADATA not in header:
        return dict(tensors)
    from safetensors.torch import save_file

    try:
        values = json.loads(header[_METADATA])
        known = {key: value for key, value in values.items() if key.rpartition(".")[2] in _KNOWN
                 or any(f".{name}." in key for name in ("rank_pattern", "alpha_pattern"))}  # fmt: skip
    except (ValueError, AttributeError, RecursionError) as error:
        raise WeightsError(
            path, f"the header of `{path}` is damaged: `{_METADATA}`", hint="download it again"
        ) from error
    save_file(tensors, folder / "lora.safetensors", {_METADATA: json.dumps(known), "format": "pt"})
    return str(folder / "lora.safetensors")


def _of_peft(pipe: Any, path: Path, tensors: dict[str, Any]) -> dict[str, Any]:
    """A file of PEFT, for one module, as diffusers names it: under the denoiser's name, with a scale for each layer."""
    import torch

    prefix = "base_model.model."
    if not all(name.startswith(prefix) for name in tensors):
        return tensors
    denoiser = next((name for name in lora_modules(pipe) if name in ("unet", "transformer")), "unet")
    made = {f"{denoiser}.{name.removeprefix(prefix)}": tensor for name, tensor in tensors.items()}
    config = path.with_name("adapter_config.json")
    if config.exists():
        values = read_config(config)
        rank, alpha = values.get("r"), values.get("lora_alpha")
        if not isinstance(rank, int) or not isinstance(alpha, int | float) or rank < 1 or _is_special(values):
            raise WeightsError(config, f"`{config}` has unsupported settings other than `r` and `lora_alpha`",
                               hint="save the LoRA with diffusers' `save_lora_weights`")  # fmt: skip
        scale = torch.tensor(alpha / rank)
        made = {name: tensor * scale if ".lora_B." in name else tensor for name, tensor in made.items()}
    return made


def _is_special(values: Mapping[str, Any]) -> bool:
    return any(values.get(key) for key in ("use_dora", "use_rslora", "alpha_pattern", "rank_pattern", "lora_bias",
                                           "modules_to_save", "layer_replication"))  # fmt: skip


def _converted(pipe: Any, tensors: dict[str, Any]) -> list[str]:
    """The names of a LoRA's tensors as diffusers converts them, with the component in front."""
    options = {"unet_config": pipe.unet.config} if hasattr(pipe, "unet") and "XL" in type(pipe).__name__ else {}
    found = type(pipe).lora_state_dict(dict(tensors), **options)
    return list(found[0] if isinstance(found, tuple) else found)


def _layers(names: Sequence[str]) -> set[str]:
    """The layers that these tensors change, with the component in front."""
    found = set()
    for name in names:
        layer = _LOKR.sub("", name) if _LOKR.search(name) else _FACTOR.sub("", name)
        if layer != name:
            found.add(_plain(layer))
    return found


def _plain(layer: str) -> str:
    """The name of a layer without what older versions of diffusers put between: ``attn1.processor.to_q_lora``."""
    layer = layer.replace(".processor.", ".").removesuffix("_lora").removesuffix(".lora_linear_layer")
    layer = re.sub(r"\.lora$", "", layer)
    layer = re.sub(r"self_attn\.to_(q|k|v|out)$", r"self_attn.\1_proj", layer)
    layer = re.sub(r"\.to_out$", ".to_out.0", layer)
    return re.sub(r"^(text_encoder(_2)?)\.text_model\.", r"\1.", layer)


def _used(pipe: Any, adapter: str) -> set[str]:
    """The layers that have the adapter, with the component in front."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = set()
    for name in lora_modules(pipe):
        for place, layer in getattr(pipe, name).named_modules():
            if isinstance(layer, BaseTunerLayer) and any(
                adapter in getattr(layer, each) for each in layer.adapter_layer_names
            ):
                found.add(_plain(f"{name}.{place}"))
    return found


@contextmanager
def reporting() -> Iterator[list[str]]:
    """Collect what diffusers warns of in this thread, rather than print it."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    of_diffusers.get_logger()  # it adds the library's handler
    of_transformers.get_logger()
    bars = of_transformers.is_progress_bar_enabled()
    of_transformers.disable_progress_bar()
    mine, found = threading.get_ident(), list[str]()
    libraries = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    others = [library.handlers[:] for library in libraries]

    class Collect(logging.Handler):
        """Keeps this thread's warnings of diffusers, drops transformers', and passes on those of other threads."""

        def __init__(self, passed_on: Sequence[logging.Handler]) -> None:
            super().__init__()
            self.passed_on = passed_on

        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            if record.thread != mine:
                for each in self.passed_on:
                    each.handle(record)
            elif record.levelno >= logging.WARNING and record.name.startswith("diffusers") and _NONE not in text:
                found.append(text)

    for library, handlers in zip(libraries, others, strict=True):
        library.handlers = [Collect(handlers)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield found
    finally:
        for library, handlers in zip(libraries, others, strict=True):
            library.handlers = handlers
        if bars:
            of_transformers.enable_progress_bar()


def load_embeddings(pipe: Any, files: Sequence[Path]) -> list[str]:
    """Add textual inversions: new words for the tokenizer and their embeddings. Returns the words.

    Raises WeightsError for one of another base model.
    """
    words = []
    for path in files:
        tensors, _ = tensors_of(path)
        if not hasattr(pipe, "load_textual_inversion"):
            raise WeightsError(path, f"a `{type(pipe).__name__}` takes no textual inversion", hint="use another model")
        word = re.sub(r"\s+", "-", path.stem)
        with reporting() as reported, offline(path):
            try:
                for tokenizer, encoder, tensor in _places(pipe, path, tensors):
                    pipe.load_textual_inversion(tensor, token=word, tokenizer=tokenizer, text_encoder=encoder)
            except (ValueError, RuntimeError, KeyError, TypeError) as error:
                message = f"the textual inversion `{path}` does not fit this `{type(pipe).__name__}`"
                raise WeightsError(path, f"{message}: {str(error).splitlines()[0][:200]}", hint=_OTHER) from error
        if reported:
            raise WeightsError(path, f"diffusers does not use all of `{path}`: {reported[0][:200]}", hint=_OTHER)
        words.append(word)
    return words


def _places(pipe: Any, path: Path, tensors: dict[str, Any]) -> list[tuple[Any, Any, Any]]:
    """For each embedding in a file its tokenizer and text encoder. Raises WeightsError."""
    two = [(pipe.tokenizer, pipe.text_encoder)]
    second = getattr(pipe, "text_encoder_2", None)
    if "clip_l" in tensors and "clip_g" in tensors and second is not None:
        return [(*two[0], tensors["clip_l"]), (pipe.tokenizer_2, second, tensors["clip_g"])]
    if len(tensors) != 1 or second is not None:
        names = ", ".join(f"`{name}`" for name in sorted(tensors)[:3])
        wanted = "`clip_l` and `clip_g`" if second is not None else "one embedding"
        message = f"the textual inversion `{path}` has {names}; this `{type(pipe).__name__}` needs {wanted}"
        raise WeightsError(path, message, hint=_OTHER)
    (tensor,) = tensors.values()
    width = pipe.text_encoder.get_input_embeddings().weight.shape[-1]
    if tensor.shape[-1] != width:
        message = f"the textual inversion `{path}` has vectors of {tensor.shape[-1]} values; this model has {width}"
        raise WeightsError(path, message, hint=_OTHER)
    return [(*two[0], tensor)]
