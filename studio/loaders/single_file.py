"""Checkpoints of whole models, or of one component, in one safetensors or GGUF file, as diffusers' modules need them.

The names of the original trainers' code are converted by diffusers' own functions, which read no other file. A module
takes a conversion only if it has all its tensors.

Try it: ``tensors_for(module, load_file("v1-5-pruned.safetensors"))``
"""

from __future__ import annotations

import gzip
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from studio.errors import ModelError, WeightsError
from studio.loaders import components, offline

Tensors = Mapping[str, Any]
_FAILURES = (KeyError, ValueError, RuntimeError, TypeError, AttributeError, IndexError, UnboundLocalError)
_VAE = ("first_stage_model.", "vae.")
_NETS = ("model.diffusion_model.", "")
_CLIPS = ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.", "text_encoders.clip_l.transformer.",
          "text_encoders.clip_g.transformer.")  # fmt: skip
_OPEN_CLIPS = ("cond_stage_model.model.", "conditioner.embedders.0.model.", "conditioner.embedders.1.model.")
_T5 = "text_encoders.t5xxl.transformer."


def tensors_for(module: Any, tensors: Tensors) -> dict[str, Any] | None:
    """The tensors of a module among those of a file, under names that the module's own files have, or None."""
    candidates = _of_text_encoder if components.is_a(type(module), "PreTrainedModel") else _of_net
    wanted = module.state_dict()
    for found in candidates(module, tensors):
        names = components.stored_names(module, found)
        by_name = {new: found[old] for old, new in names.items() if new in wanted}
        needed = {name for name in wanted if name not in getattr(module, "all_tied_weights_keys", {})}
        if needed <= by_name.keys() and all(by_name[name].shape == wanted[name].shape for name in needed):
            return {old: found[old] for old, new in names.items() if new in wanted}
    return None


def _of_net(module: Any, tensors: Tensors) -> Any:
    """Candidates for a module of diffusers: as it is, under a prefix, and converted."""
    from diffusers.loaders import single_file_model

    for prefix in ("", *_NETS[:1], *_VAE):
        yield {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    kind = single_file_model._get_single_file_loadable_mapping_class(type(module))
    if kind is None:
        return
    convert = single_file_model.SINGLE_FILE_LOADABLE_CLASSES[kind]["checkpoint_mapping_fn"]
    for drop in ("", _NETS[0]):
        given = {name.removeprefix(drop): tensor for name, tensor in tensors.items()}
        try:
            yield dict(convert(checkpoint=given, config=dict(module.config)))
        except _FAILURES:
            continue  # the file is of another kind: `tensors_for` says that nothing fits


def _of_text_encoder(module: Any, tensors: Tensors) -> Any:
    """Candidates for a text encoder: CLIP under several prefixes, OpenCLIP converted, T5."""
    import torch
    from diffusers.loaders import single_file_utils

    width = int(getattr(module.config, "projection_dim", 0) or 0)
    for prefix in ("", *_CLIPS, _T5):
        found = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        yield found
        if found and "text_projection.weight" not in found and prefix == "text_encoders.clip_l.transformer.":
            yield found | {"text_projection.weight": torch.eye(width)}  # what Stable Diffusion 3 was trained with
    for prefix in _OPEN_CLIPS:
        if f"{prefix}positional_embedding" in tensors:
            yield single_file_utils.convert_open_clip_checkpoint(module, dict(tensors), prefix=prefix)


def gguf_module(kind: type, file: Path, config: Path, dtype: Any) -> Any:
    """A module whose weights stay quantized as in a GGUF file; they are decoded layer by layer when it is called.

    Raises WeightsError, ModelError.
    """
    import diffusers

    if not components.is_a(kind, "FromOriginalModelMixin"):
        raise WeightsError(file, f"diffusers reads no `{kind.__name__}` from GGUF", hint="use a model in safetensors")
    components.build(kind, config, dtype)  # checks the config, which the library reads too
    with offline(file):
        try:
            return kind.from_single_file(  # type: ignore[attr-defined]
                str(file), config=str(config), torch_dtype=dtype, local_files_only=True,
                quantization_config=diffusers.GGUFQuantizationConfig(compute_dtype=dtype),
            ).eval()  # fmt: skip
        except ModelError:
            raise
        except (*_FAILURES, OSError, NotImplementedError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            message = f"`{file}` does not fit the model's `{kind.__name__}`: {reason[:160]}"
            raise WeightsError(file, message, hint="use a GGUF file of the same model as the folder") from error


def write_clip_tokenizer(folder: Path, config: Mapping[str, Any]) -> None:
    """Write CLIP's tokenizer into a folder, with the byte-pair encoding of open_clip. Raises ModelError."""
    spec = importlib.util.find_spec("open_clip")
    places = list(spec.submodule_search_locations or ()) if spec else []
    path = Path(places[0]) / "bpe_simple_vocab_16e6.txt.gz" if places else Path()
    if not path.is_file():
        raise ModelError("CLIP's tokenizer is missing: open_clip is not installed", hint="pip install open-clip-torch")
    merges = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")[1 : 49152 - 256 - 2 + 1]
    letters = list(_letters().values())
    words = [*letters, *(f"{each}</w>" for each in letters), *(each.replace(" ", "") for each in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}), "utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(dict(config)), "utf-8")


def _letters() -> dict[int, str]:
    """Byte -> the character that stands for it (Radford et al. 2019, GPT-2's code)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [each for each in range(256) if each not in printable]
    return dict(
        zip([*printable, *others], [*map(chr, printable), *(chr(256 + i) for i in range(len(others)))], strict=True)
    )
