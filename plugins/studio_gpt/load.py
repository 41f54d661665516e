"""Models from disk: a folder in the layout of transformers (safetensors, also sharded), or a GGUF file.

`find` reads what is small (configuration, index, GGUF header) and says which files hold the weights; `Found.build`
fills a decoder with them, `Found.tokens` reads the tokenizer. Sizes are checked before anything is read, and a weight
that is not finite is refused. `save` writes a folder that transformers reads. This module knows nothing
of generators.

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
from studio.weights.loading import Source, Tensors
from studio_gpt import families, gguf_model
from studio_gpt.families import Stored
from studio_gpt.gguf_file import Gguf
from studio_gpt.linear import Pack
from studio_gpt.model import GPT, Config
from studio_gpt.tokens import Tokens

INDEX = "model.safetensors.index.json"
_LARGEST = {"tokenizer.json": MOST_TOKENIZER, INDEX: MOST_INDEX}  # bytes
_OTHERS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_OTHER = "name another model, or get this one again if it should be sound"
_FORMATS = "a folder with config.json and *.safetensors, or a .gguf file"


@dataclass(frozen=True)
class Found:
    """A model on disk.

    Attributes:
        path: the folder or the GGUF file.
        config: its shape.
        plan: where each parameter of the decoder stands in the files.
        files: those that hold weights.
        tied: whether the head has no weights of its own.
    """

    path: Path
    config: Config
    plan: Mapping[str, Stored]
    files: tuple[Path, ...]
    gguf: Gguf | None = None

    @property
    def others(self) -> list[Path]:
        """The small files that the model is made of too."""
        folder = self.path if self.gguf is None else self.path.parent
        if self.gguf is not None and not (folder / "tokenizer.json").exists():
            return []  # all is in the file
        return [folder / name for name in _OTHERS if (folder / name).exists()]

    def build(self, device: str, dtype: str | torch.dtype, pack: Pack | None = None) -> GPT:
        """The decoder with its weights, frozen, and packed if that is asked for.

        Raises WeightsError if they are damaged or do not fit.
        """
        made: GPT = studio.module(
            partial(GPT, self.config), self.files, device=device, dtype=dtype, reader=self._open, pack=pack
        )
        return made

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
            message = f"the tokenizer of `{self.path}` knows {found.size:,} tokens and the model {self.config.vocab:,}"
            raise WeightsError(self.path, message, hint="put the model's own tokenizer.json there")
        return replace(found, ends=frozenset(each for each in found.ends if 0 <= each < self.config.vocab))

    def _open(self, files: Sequence[Path], device: str, dtype: torch.dtype) -> Tensors:
        if self.gguf is not None:
            return Arranged(_GgufTensors(self.gguf, device, dtype), self.plan)
        embedded_by_head = self.plan["embed.weight"].names == (families.HEAD,)
        rename = partial(families.plain_name, tied=self.config.tied and not embedded_by_head)
        return Arranged(Source(files, rename, device, dtype), self.plan)


def find(path: Path) -> Found:
    """Look at a model. Raises WeightsError if it is missing, damaged, or of a kind that is not known."""
    try:
        if path.is_file() and path.suffix.lower() == ".gguf":
            return _find_gguf(path)
        if (path / "config.json").is_file():
            return _find_folder(path)
    except UsageError as error:
        raise _unusable(path, error) from None
    what = "is no model" if path.exists() else "does not exist"
    raise WeightsError(path, f"the model `{path}` {what}", hint=f"name {_FORMATS}")


def _unusable(path: Path, error: UsageError) -> WeightsError:
    return WeightsError(path, f"the model `{path}` cannot be used: {error.message}", hint=error.hint or _OTHER)


def _find_folder(path: Path) -> Found:
    values = read_json(path / "config.json")
    config = families.config_of(values)
    files = sorted(path.glob("*.safetensors"))
    if (path / INDEX).exists():
        shards = read_json(path / INDEX).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(each, str) for each in shards.values()):
            raise WeightsError(path / INDEX, f"`{path / INDEX}` has no map of weights", hint="get the model again")
        files = [path / Path(name).name for name in sorted(set(shards.values()))]
    elif (path / "model.safetensors").exists():
        files = [path / "model.safetensors"]
    missing = [file.name for file in files if not file.exists()]
    if missing or not files:
        lacks = f"lacks `{missing[0]}`, which its index names" if missing else "has no *.safetensors"
        raise WeightsError(path, f"the model `{path}` {lacks}", hint="get the model again; pickles are not read")
    own = _own_head(files, families.embedding_of(values["model_type"])) if config.tied else ""
    if own == "untied":
        config = replace(config, tied=False)
    plan = families.plan_of(config, values["model_type"])
    if own == "embedding":
        plan["embed.weight"] = replace(plan["embed.weight"], names=(families.HEAD,))
    return Found(path, config, plan, tuple(files))


def _own_head(files: Sequence[Path], embedding: str) -> str:
    """What files of a tied model hold of a head: nothing or a copy (``""``), other weights than the embedding's
    (``untied``: they are used, as transformers does), or a head in place of the embedding (``embedding``).
    """
    source = Source(files, partial(families.plain_name, tied=False), "cpu", torch.float32)
    if families.HEAD not in source.names:
        return ""
    if embedding not in source.names:
        return "embedding"
    return "" if source.equal(families.HEAD, embedding) else "untied"


def _find_gguf(path: Path) -> Found:
    gguf = Gguf(path)
    shapes = {name: info.shape for name, info in gguf.tensors.items()}
    divisors = gguf.tensor("rope_freqs.weight").tolist() if "rope_freqs.weight" in shapes else ()
    config = gguf_model.config_of(gguf.metadata, shapes, divisors)
    plan = gguf_model.plan_of(config, gguf.metadata["general.architecture"])
    return Found(path, config, plan, (path,), gguf)


class Arranged:
    """Tensors by the decoder's names, put together from those that are stored. Raises WeightsError where one lacks."""

    def __init__(self, pieces: Tensors, plan: Mapping[str, Stored]) -> None:
        self._pieces, self.plan = pieces, plan
        self.files, self.device, self.dtype = pieces.files, pieces.device, pieces.dtype
        self._used = {name for each in plan.values() for name in each.names}
        if missing := sorted(self._used - pieces.names):
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            message = f"the weights of `{self.files[0].parent}` lack the tensor `{missing[0]}`{more}"
            raise WeightsError(self.files[0], message, hint="get the model again, or use the config.json beside it")

    @property
    def names(self) -> set[str]:
        """The decoder's names, and those that are stored and mean nothing to it."""
        return {*self.plan, *(self._pieces.names - self._used)}

    def check(self, name: str, shape: Sequence[int]) -> None:
        """Raise WeightsError unless what is stored makes a tensor of this shape."""
        each = self.plan[name]
        for stored, rows in zip(each.names, each.rows, strict=True):
            piece = (rows, *shape[1:])
            self._pieces.check(stored, piece[::-1] if each.transposed else piece)

    def read(self, name: str) -> Tensor:
        """The tensor, on the device and in the dtype. Raises WeightsError if a number is not finite."""
        return self._arrange(name, self._pieces.read)

    def stored(self, name: str) -> Tensor:
        """The tensor in host memory, in the dtype already. Raises as `read` does."""
        return self._arrange(name, lambda stored: self._pieces.stored(stored).to(self.dtype))

    def _arrange(self, name: str, read: Callable[[str], Tensor]) -> Tensor:
        each, pieces = self.plan[name], []
        for i, stored in enumerate(each.names):
            piece = read(stored)
            if not piece.isfinite().all():
                message = f"the tensor `{stored}` has numbers that are not finite in {str(self.dtype).split('.')[1]}"
                wider = "" if self.dtype == torch.float32 else "; or load it in float32"
                raise WeightsError(self.files[0], message, hint=f"get the model again{wider}")
            if each.pairs and each.pairs[i]:
                piece = _side_by_side(piece, each.pairs[i])
            pieces.append(piece.t().contiguous() if each.transposed else piece)
        return torch.cat(pieces) if len(pieces) > 1 else pieces[0]


class _GgufTensors:
    """The tensors of a GGUF file, as `studio.weights.loading.Source` has those of safetensors."""

    def __init__(self, gguf: Gguf, device: str, dtype: torch.dtype) -> None:
        self.gguf, self.device, self.dtype = gguf, device, dtype
        self.files: Sequence[Path] = (gguf.path,)

    @property
    def names(self) -> set[str]:
        return {*self.gguf.tensors} - {"rope_freqs.weight"}  # it is part of the configuration

    def check(self, name: str, shape: Sequence[int]) -> None:
        found = self.gguf.tensors[name].shape
        if found != tuple(shape):
            message = f"the tensor `{name}` of `{self.gguf.path}` has the shape {list(found)}; it must be {list(shape)}"
            raise WeightsError(self.gguf.path, message, hint="get the file again: its metadata are of another model")

    def read(self, name: str) -> Tensor:
        return devices.device(self.device).send(self.stored(name), self.dtype)

    def stored(self, name: str) -> Tensor:
        return torch.from_numpy(self.gguf.tensor(name))


def _side_by_side(piece: Tensor, heads: int) -> Tensor:
    """Rows of each head from turned pairs (0, D/2, 1, …), as llama.cpp has them, to halves (0, 1, …, D/2, …)."""
    return piece.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a size that is sane for its name. Raises WeightsError."""
    try:
        found = json.loads(regular(path, _LARGEST.get(path.name, MOST_CONFIG)))
    except (ValueError, RecursionError) as error:
        raise WeightsError(path, f"`{path}` is no JSON: {error}", hint="get the model again") from None
    if not isinstance(found, dict):
        raise WeightsError(path, f"`{path}` is no JSON object", hint="get the model again")
    return found


def _folder_tokens(folder: Path, vocab: int) -> Tokens:
    import tokenizers

    path = folder / "tokenizer.json"
    if not path.exists():
        hint = f"make it: `transformers.AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained(…)`"
        raise WeightsError(path, f"the model `{folder}` has no tokenizer.json", hint=hint)
    more = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    template = _template(folder, more)
    # Prompts are neither cut nor padded, whatever was saved with the tokenizer.
    content = {**read_config(path, MOST_TOKENIZER), "truncation": None, "padding": None}
    content["added_tokens"] = _embedded(content.get("added_tokens"), vocab, template or "")
    tokenizer = tokenizer_json.build(content, path)
    told = [read_json(file) for name in ("config.json", "generation_config.json")
            if (file := folder / name).exists()]  # fmt: skip
    found = [each.get("eos_token_id") for each in told]
    ends = {one for each in found for one in (each if isinstance(each, list) else [each]) if isinstance(one, int)}
    specials = {
        name: _text(more[name]) for name in ("bos_token", "eos_token", "pad_token", "unk_token") if more.get(name)
    }
    # transformers takes named tokens as special ones, even where tokenizer.json has them among its words
    named = [tokenizers.AddedToken(each, special=True, normalized=False) for each in specials.values()
             if tokenizer.token_to_id(each) is not None]  # fmt: skip
    tokenizer.add_special_tokens(named)
    eos = tokenizer.token_to_id(specials.get("eos_token", ""))
    return Tokens(tokenizer, frozenset(ends if eos is None else {*ends, eos}), template, specials,
                  one_turn=more.get("one_turn") is True)  # fmt: skip


def _embedded(added: Any, vocab: int, template: str) -> Any:
    """A tokenizer's added tokens without special ones that the model has no embedding for, such as one for padding.

    They are never needed, unless the chat template writes them; then they stay, and the tokenizer is refused.
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
    """A special token, which may be written as an object."""
    return str(value.get("content", "") if isinstance(value, dict) else value)


def _template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The chat template: a file of its own, a text, or the one called `default` of several."""
    file = folder / "chat_template.jinja"
    if file.exists():
        try:
            return regular(file, MOST_CONFIG).decode()
        except UnicodeDecodeError as error:
            message = f"`{file}` is not UTF-8 text: {error.reason} at byte {error.start:,}"
            raise WeightsError(file, message, hint="get the model again") from None
    found = config.get("chat_template")
    if isinstance(found, list):
        named = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def save(model: GPT, folder: Path) -> None:
    """Write config.json and model.safetensors as transformers reads them, as GPT-2 or Llama by the decoder's shape."""
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
