"""Load models from disk: a folder in the layout of transformers (safetensors, also sharded), or a GGUF file.

`find` reads the small files (configuration, index, GGUF header) and determines which files hold the weights;
`ModelFiles.build` fills a decoder with them, `ModelFiles.tokens` reads the tokenizer. Sizes are checked before anything
is read, and a weight that is not finite is refused. `save` writes a folder that transformers reads. This module knows
nothing of generators.

Try it: ``python -c "from studio_gpt.load import *; print(find(Path('folder')).config)"``
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import studio
from studio import devices
from studio.errors import UsageError, WeightsError
from studio.loaders import MOST_CONFIG, MOST_INDEX, MOST_TOKENIZER, read_config, regular, tokenizer_json
from studio.weights.loading import SafetensorsSource, Tensors
from studio_gpt import families, gguf_model
from studio_gpt.config import Config
from studio_gpt.families import StoredParameter
from studio_gpt.gguf_file import Gguf
from studio_gpt.model import GPT
from studio_gpt.quantized_linear import Quantizer
from studio_gpt.tokens import Tokens

INDEX = "model.safetensors.index.json"
_LARGEST = {"tokenizer.json": MOST_TOKENIZER, INDEX: MOST_INDEX}  # bytes
_OTHERS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_OTHER = "use another model, or download this one again"
_FORMATS = "a folder with config.json and *.safetensors, or a .gguf file"


@dataclass(frozen=True)
class ModelFiles:
    """A model on disk.

    Attributes:
        path: the folder or the GGUF file.
        config: its shape.
        plan: where each parameter of the decoder is stored in the files.
        files: the files that hold weights.
    """

    path: Path
    config: Config
    plan: Mapping[str, StoredParameter]
    files: tuple[Path, ...]
    gguf: Gguf | None = None

    @property
    def others(self) -> list[Path]:
        """The other files of the model, such as its configuration and tokenizer."""
        folder = self.path if self.gguf is None else self.path.parent
        if self.gguf is not None and not (folder / "tokenizer.json").exists():
            return []  # the GGUF file has everything
        return [folder / name for name in _OTHERS if (folder / name).exists()]

    def build(self, device: str, dtype: str | torch.dtype, pack: Quantizer | None = None) -> GPT:
        """The decoder with its weights, frozen, and quantized by `pack` if given.

        Raises WeightsError if the weights are damaged or have other shapes.
        """
        model: GPT = studio.module(
            partial(GPT, self.config), self.files, device=device, dtype=dtype, reader=self._open, pack=pack
        )
        return model

    def tokens(self) -> Tokens:
        """The tokenizer: a tokenizer.json in the folder or beside the file, else the one inside a GGUF file."""
        folder = self.path if self.gguf is None else self.path.parent
        try:
            if self.gguf is None:
                found = _folder_tokens(folder, self.config.vocab)
            elif (folder / "tokenizer.json").exists():
                found = gguf_model.with_metadata(_folder_tokens(folder, self.config.vocab), self.gguf.metadata)
            else:
                words = self.gguf.metadata.get("tokenizer.ggml.tokens")
                tokenizer_json.check_words([str(word) for word in words or ()], self.path)
                found = gguf_model.tokens_of(self.gguf.metadata)
        except UsageError as error:
            raise _unusable(self.path, error) from None
        if found.size > self.config.vocab:
            message = (
                f"the tokenizer of `{self.path}` has {found.size:,} tokens, but the model only {self.config.vocab:,}"
            )
            raise WeightsError(self.path, message, hint="put the model's own tokenizer.json there")
        return replace(found, ends=frozenset(each for each in found.ends if 0 <= each < self.config.vocab))

    def _open(self, files: Sequence[Path], device: str, dtype: torch.dtype) -> Tensors:
        if self.gguf is not None:
            return RemappedTensors(_GgufTensors(self.gguf, device, dtype), self.plan)
        embedded_by_head = self.plan["embed.weight"].names == (families.HEAD,)
        rename = partial(families.plain_name, tied=self.config.tied and not embedded_by_head)
        return RemappedTensors(SafetensorsSource(files, rename, device, dtype), self.plan)


def find(path: Path) -> ModelFiles:
    """Inspect a model. Raises WeightsError if it is missing, damaged, or of an unsupported architecture."""
    try:
        if path.is_file() and path.suffix.lower() == ".gguf":
            return _find_gguf(path)
        if (path / "config.json").is_file():
            return _find_folder(path)
    except UsageError as error:
        raise _unusable(path, error) from None
    what = "is not a model" if path.exists() else "does not exist"
    raise WeightsError(path, f"the model `{path}` {what}", hint=f"give {_FORMATS}")


def _unusable(path: Path, error: UsageError) -> WeightsError:
    return WeightsError(path, f"the model `{path}` cannot be used: {error.message}", hint=error.hint or _OTHER)


def _find_folder(path: Path) -> ModelFiles:
    values = read_json(path / "config.json")
    config = families.config_of(values)
    files = sorted(path.glob("*.safetensors"))
    if (path / INDEX).exists():
        shards = read_json(path / INDEX).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(each, str) for each in shards.values()):
            raise WeightsError(
                path / INDEX, f"`{path / INDEX}` has no valid `weight_map`", hint="download the model again"
            )
        files = [path / Path(name).name for name in sorted(set(shards.values()))]
    elif (path / "model.safetensors").exists():
        files = [path / "model.safetensors"]
    missing = [file.name for file in files if not file.exists()]
    if missing or not files:
        lacks = f"lacks `{missing[0]}`, which its index names" if missing else "has no *.safetensors"
        raise WeightsError(
            path, f"the model `{path}` {lacks}", hint="download the model again; pickles are not supported"
        )
    head = _unshared_head(files, families.embedding_of(values["model_type"])) if config.tied else ""
    if head == "untied":
        config = replace(config, tied=False)
    plan = families.plan_of(config, values["model_type"])
    if head == "embedding":
        plan["embed.weight"] = replace(plan["embed.weight"], names=(families.HEAD,))
    return ModelFiles(path, config, plan, tuple(files))


def _unshared_head(files: Sequence[Path], embedding: str) -> str:
    """What the files of a model with tied weights have as its head: nothing or a copy (``""``), other weights than the
    embedding's (``untied``: they are used, as in transformers), or a head but no embedding (``embedding``).
    """
    source = SafetensorsSource(files, partial(families.plain_name, tied=False), "cpu", torch.float32)
    if families.HEAD not in source.names:
        return ""
    if embedding not in source.names:
        return "embedding"
    return "" if source.equal(families.HEAD, embedding) else "untied"


def _find_gguf(path: Path) -> ModelFiles:
    gguf = Gguf(path)
    shapes = {name: info.shape for name, info in gguf.tensors.items()}
    divisors = gguf.tensor("rope_freqs.weight").tolist() if "rope_freqs.weight" in shapes else ()
    config = gguf_model.config_of(gguf.metadata, shapes, divisors)
    plan = gguf_model.plan_of(config, gguf.metadata["general.architecture"])
    return ModelFiles(path, config, plan, (path,), gguf)


class RemappedTensors:
    """Tensors under the decoder's names, assembled from stored ones. Raises WeightsError if one is missing."""

    def __init__(self, pieces: Tensors, plan: Mapping[str, StoredParameter]) -> None:
        self._pieces, self.plan = pieces, plan
        self.files, self.device, self.dtype = pieces.files, pieces.device, pieces.dtype
        self._used = {name for each in plan.values() for name in each.names}
        if missing := sorted(self._used - pieces.names):
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            message = f"the weights of `{self.files[0].parent}` lack the tensor `{missing[0]}`{more}"
            raise WeightsError(self.files[0], message, hint="download the model again, with its own config.json")

    @property
    def names(self) -> set[str]:
        """The decoder's names, and stored names that it does not use."""
        return {*self.plan, *(self._pieces.names - self._used)}

    def check(self, name: str, shape: Sequence[int]) -> None:
        """Raise WeightsError unless the stored tensors make one of this shape."""
        each = self.plan[name]
        for stored, rows in zip(each.names, each.rows, strict=True):
            piece = (rows, *shape[1:])
            self._pieces.check(stored, piece[::-1] if each.transposed else piece)

    def read(self, name: str) -> Tensor:
        """The tensor, on the device and in the dtype. Raises WeightsError for NaN or infinity."""
        return self._arrange(name, self._pieces.read)

    def stored(self, name: str) -> Tensor:
        """The tensor in host memory, in the dtype. Raises as `read` does."""
        return self._arrange(name, lambda stored: self._pieces.stored(stored).to(self.dtype))

    def dtype_of(self, name: str) -> torch.dtype:
        """The dtype of all tensors."""
        return self.dtype

    def copy_into(self, name: str, memory: Tensor) -> None:
        """Read the tensor into host memory. Raises as `read` does."""
        memory.copy_(self.stored(name))

    def _arrange(self, name: str, read: Callable[[str], Tensor]) -> Tensor:
        each, pieces = self.plan[name], []
        for i, stored in enumerate(each.names):
            piece = read(stored)
            if not piece.isfinite().all():
                message = f"the tensor `{stored}` has NaN or infinity in {str(self.dtype).split('.')[1]}"
                wider = "" if self.dtype == torch.float32 else "; or load it in float32"
                raise WeightsError(self.files[0], message, hint=f"download the model again{wider}")
            if each.pairs and each.pairs[i]:
                piece = _uninterleaved(piece, each.pairs[i])
            pieces.append(piece.t().contiguous() if each.transposed else piece)
        return torch.cat(pieces) if len(pieces) > 1 else pieces[0]


class _GgufTensors:
    """The tensors of a GGUF file, as `studio.weights.loading.SafetensorsSource` has those of safetensors."""

    def __init__(self, gguf: Gguf, device: str, dtype: torch.dtype) -> None:
        self.gguf, self.device, self.dtype = gguf, device, dtype
        self.files: Sequence[Path] = (gguf.path,)

    @property
    def names(self) -> set[str]:
        return {*self.gguf.tensors} - {"rope_freqs.weight"}  # part of the configuration

    def check(self, name: str, shape: Sequence[int]) -> None:
        found = self.gguf.tensors[name].shape
        if found != tuple(shape):
            message = f"the tensor `{name}` of `{self.gguf.path}` has the shape {list(found)}; it must be {list(shape)}"
            raise WeightsError(
                self.gguf.path, message, hint="download the file again: its metadata belong to another model"
            )

    def read(self, name: str) -> Tensor:
        return devices.device(self.device).send(self.stored(name), self.dtype)

    def dtype_of(self, name: str) -> torch.dtype:
        return self.dtype

    def copy_into(self, name: str, memory: Tensor) -> None:
        memory.copy_(self.stored(name))

    def stored(self, name: str) -> Tensor:
        return torch.from_numpy(self.gguf.tensor(name))


def _uninterleaved(piece: Tensor, heads: int) -> Tensor:
    """Rows of each head from interleaved pairs (0, D/2, 1, …), the order of llama.cpp, to halves (0, 1, …, D/2, …)."""
    return piece.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of bounded size. Raises WeightsError."""
    try:
        found = json.loads(regular(path, _LARGEST.get(path.name, MOST_CONFIG)))
    except (ValueError, RecursionError) as error:
        raise WeightsError(path, f"`{path}` is not JSON: {error}", hint="download the model again") from None
    if not isinstance(found, dict):
        raise WeightsError(path, f"`{path}` is not a JSON object", hint="download the model again")
    return found


def _folder_tokens(folder: Path, vocab: int) -> Tokens:
    import tokenizers

    path = folder / "tokenizer.json"
    if not path.exists():
        hint = f"create it: `transformers.AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained(…)`"
        raise WeightsError(path, f"the model `{folder}` has no tokenizer.json", hint=hint)
    more = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    template = _template(folder, more)
    # Prompts are neither truncated nor padded, whatever the tokenizer's settings.
    content = {**read_config(path, MOST_TOKENIZER), "truncation": None, "padding": None}
    content["added_tokens"] = _without_unembedded(content.get("added_tokens"), vocab, template or "")
    tokenizer = tokenizer_json.build(content, path)
    configs = [read_json(file) for name in ("config.json", "generation_config.json")
            if (file := folder / name).exists()]  # fmt: skip
    found = [each.get("eos_token_id") for each in configs]
    ends = {one for each in found for one in (each if isinstance(each, list) else [each]) if isinstance(one, int)}
    specials = {
        name: _text(more[name]) for name in ("bos_token", "eos_token", "pad_token", "unk_token") if more.get(name)
    }
    # transformers treats named tokens as special, even if tokenizer.json has them as ordinary tokens
    named = [tokenizers.AddedToken(each, special=True, normalized=False) for each in specials.values()
             if tokenizer.token_to_id(each) is not None]  # fmt: skip
    tokenizer.add_special_tokens(named)
    eos = tokenizer.token_to_id(specials.get("eos_token", ""))
    return Tokens(tokenizer, frozenset(ends if eos is None else {*ends, eos}), template, specials,
                  one_turn=more.get("one_turn") is True)  # fmt: skip


def _without_unembedded(added: Any, vocab: int, template: str) -> Any:
    """A tokenizer's added tokens without special tokens that have no embedding, such as one for padding.

    They are not needed unless the chat template writes them; then they stay, and the tokenizer is rejected.
    """
    if not isinstance(added, list) or not all(isinstance(each, dict) for each in added):
        return added  # the library says what is wrong with it

    def needed(token: dict[str, Any]) -> bool:
        number = token.get("id")
        return not (token.get("special") and isinstance(number, int) and number >= vocab) or (
            str(token.get("content")) in template
        )

    return [each for each in added if needed(each)]


def _text(value: Any) -> str:
    """A special token, which may be stored as an object."""
    return str(value.get("content", "") if isinstance(value, dict) else value)


def _template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The chat template: a separate file, a text, or the one named `default` of several."""
    file = folder / "chat_template.jinja"
    if file.exists():
        try:
            return regular(file, MOST_CONFIG).decode()
        except UnicodeDecodeError as error:
            message = f"`{file}` is not UTF-8 text: {error.reason} at byte {error.start:,}"
            raise WeightsError(file, message, hint="download the model again") from None
    found = config.get("chat_template")
    if isinstance(found, list):
        named = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def save(model: GPT, folder: Path) -> None:
    """Write config.json and model.safetensors in the layout of transformers, as GPT-2 or Llama by the decoder's
    shape.
    """
    from safetensors.torch import save_file

    values = families.values_of(model.config)
    weights = dict(model.state_dict())
    stored: dict[str, Tensor] = {}
    for name, each in families.plan_of(model.config, values["model_type"]).items():
        for part, piece in zip(each.names, weights[name].detach().cpu().split(each.rows), strict=True):
            prefix = "" if part.startswith("lm_head") else "transformer." if model.config.rope is None else "model."
            stored[prefix + part] = (piece.t() if each.transposed else piece).contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", "utf-8")
