"""transformers' configs, models and tokenizers from untrusted folders.

A config gets only the keys that its class declares. A tokenizer is loaded from a temporary copy with only the files and
keys below, since the library follows paths, classes and revisions in the files.

Try it: ``tokenizer("CLIPTokenizer", Path("folder/tokenizer"))``
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from studio.errors import WeightsError, is_out_of_memory
from studio.loaders import (
    MOST_TOKENIZER,
    allowed,
    chat_template,
    check_index,
    offline,
    read_config,
    regular,
    scratch,
)
from studio.loaders.tokenizer_json import check

_LEFT_OUT = ("self", "dtype", "transformers_version", "architectures", "attn_implementation", "experts_implementation")
_SETTINGS = (
    "add_bos_token", "add_eos_token", "add_prefix_space", "additional_special_tokens", "added_tokens_decoder",
    "clean_up_tokenization_spaces", "do_basic_tokenize", "do_lower_case", "errors", "extra_ids", "extra_special_tokens",
    "legacy", "model_input_names", "padding_side", "split_special_tokens", "strip_accents", "tokenize_chinese_chars",
    "tokenizer_class", "truncation_side",
)  # fmt: skip
"""Keys of `tokenizer_config.json` that are passed on, besides `model_max_length` and special tokens."""
_WORDS = ("vocab.json", "merges.txt", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
_PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
_FOUND = ("tokenizer_config.json", "tokenizer.json", "preprocessor_config.json", *_WORDS)
_MOST_LENGTH = 1 << 24
_NEWER = "use a model of the installed transformers, or a newer transformers"


def config(kind: str | type, folder: Path) -> Any:
    """The config of a class of transformers, such as `CLIPTextConfig`, from `config.json`. Raises WeightsError."""
    import transformers

    made: Any = getattr(transformers, kind) if isinstance(kind, str) else kind
    path = folder / "config.json"
    values = read_config(path)
    key = getattr(made, "base_config_key", "")
    if key and isinstance(values.get(key), dict) and values.get("model_type") != made.model_type:
        values = values[key]  # the config of a whole CLIP has one per tower
    try:
        return made(**_declared(path, made, values))
    except WeightsError:
        raise
    except Exception as error:  # the library has its own error classes
        raise _unusable(path, error) from error


_ALWAYS = ("rope_parameters", "rope_scaling", "rope_theta", "tie_word_embeddings")


def _declared(path: Path, made: Any, values: dict[str, Any]) -> dict[str, Any]:
    """The values of keys that the config class declares, and those of the config classes of its parts."""
    known = {*inspect.signature(made.__init__).parameters, *_ALWAYS} - set(_LEFT_OUT)
    parts: dict[str, Any] = getattr(made, "sub_configs", None) or {}
    for name, part in parts.items():
        if name not in values:  # older configs have the keys of the text model beside those of the whole
            known |= set(inspect.signature(part.__init__).parameters) - set(_LEFT_OUT) - {"args", "kwargs"}
    found = allowed(path, values, known - set(parts))
    for name in parts.keys() & values.keys():
        inner = values[name]
        if isinstance(inner, dict):
            found[name] = _declared(path, _config_class(path, parts[name], inner), inner)
            if isinstance(inner.get("model_type"), str):
                found[name]["model_type"] = inner["model_type"]
    return found


def _config_class(path: Path, part: Any, values: dict[str, Any]) -> Any:
    """The class of a part's config; where any model may be the part, that of its `model_type`."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, AutoConfig

    if part is not AutoConfig:
        return part
    kind = values.get("model_type")
    if kind not in CONFIG_MAPPING:
        raise WeightsError(path, f"`{path}` has a part of the unknown `model_type` {kind!r:.60}", hint=_NEWER)
    return CONFIG_MAPPING[kind]


def built(kind: type, config: Any, folder: Path) -> Any:
    """A model of class `kind` of a config read from `folder`, without weights. Raises WeightsError."""
    try:
        return kind(config)
    except (
        ImportError, RuntimeError, TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError
    ) as error:  # fmt: skip
        if is_out_of_memory(error):
            raise
        raise _unusable(folder / "config.json", error) from error


def model(kind: str, settings: str, folder: Path) -> Any:
    """A model of class `kind` with config class `settings` and the folder's safetensors, float32, in evaluation mode.

    Raises WeightsError, ModelError.
    """
    import transformers

    check_index(folder)
    made = config(settings, folder)
    with offline(folder):
        try:
            found = getattr(transformers, kind).from_pretrained(
                folder, config=made, use_safetensors=True, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            raise _unusable(folder, error) from error
    return found.eval()


def tokenizer(kind: str, folder: Path, family: str | None = None) -> Any:
    """A tokenizer of class `kind`; `AutoTokenizer` needs `family`, a `model_type`. Raises WeightsError."""
    import transformers

    with copied_tokenizer(folder, family) as copy, offline(folder):
        try:
            return getattr(transformers, kind).from_pretrained(copy, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # `tokenizers` raises a bare Exception
            raise _unusable(folder, error) from error


def image_processor(kind: str, folder: Path) -> Any:
    """An image processor of class `kind` from `preprocessor_config.json`. Raises WeightsError."""
    import transformers

    path = folder / "preprocessor_config.json"
    keys = ("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor",
            "do_normalize", "image_mean", "image_std", "do_convert_rgb")  # fmt: skip
    try:
        return getattr(transformers, kind)(**allowed(path, read_config(path), keys))
    except (TypeError, ValueError, KeyError) as error:
        raise _unusable(path, error) from error


def processor(kind: type, folder: Path) -> Any:
    """A tokenizer, image processor, feature extractor or processor of a class of transformers. Raises WeightsError.

    Its chat template, if any, is rendered in a process with limits (`chat_template`).
    """
    if not (folder / "processor_config.json").exists() and not any((folder / name).exists() for name in _FOUND):
        names = " or ".join(f"`{name}`" for name in ("tokenizer_config.json", "preprocessor_config.json"))
        raise WeightsError(folder, f"`{folder}` has no {names}, needed for a `{kind.__name__}`",
                           hint="download the model again")  # fmt: skip
    with scratch() as made, offline(folder):
        _copy(folder, made, None)
        for name in _PROCESSORS:
            if (folder / name).exists():
                values = read_config(folder / name)
                keys = [key for key in values if not key.startswith("_")]
                (made / name).write_text(json.dumps(allowed(folder / name, values, keys)), "utf-8")
        _copy_chat_template(folder, made)
        try:
            found: Any = kind.from_pretrained(made, local_files_only=True, trust_remote_code=False)  # type: ignore[attr-defined]
        except Exception as error:  # `tokenizers` raises a bare Exception
            raise _unusable(folder, error) from error
    for each in (found, getattr(found, "tokenizer", None)):
        chat_template.limit(each)
    return found


def _copy_chat_template(folder: Path, into: Path) -> None:
    found: Any = None
    if (folder / "chat_template.jinja").exists():
        found = regular(folder / "chat_template.jinja", chat_template.MOST_TEMPLATE).decode("utf-8", "replace")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if found is None and (folder / name).exists():
            found = read_config(folder / name).get("chat_template")
    if isinstance(found, str) and len(found) <= chat_template.MOST_TEMPLATE:
        (into / "chat_template.jinja").write_text(found, "utf-8")


@contextmanager
def copied_tokenizer(folder: Path, family: str | None = None) -> Iterator[str]:
    """A temporary folder with the tokenizer's files, reduced to known keys. Raises WeightsError."""
    with scratch() as made:
        _copy(folder, made, family)
        yield str(made)


def _copy(folder: Path, into: Path, family: str | None) -> None:
    for name in _WORDS:
        if (folder / name).exists():
            (into / name).write_bytes(regular(folder / name, MOST_TOKENIZER))
    if (folder / "tokenizer.json").exists():
        content = read_config(folder / "tokenizer.json", MOST_TOKENIZER)
        check(content, folder / "tokenizer.json")
        (into / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    if (folder / "added_tokens.json").exists():
        added = read_config(folder / "added_tokens.json")
        (into / "added_tokens.json").write_text(
            json.dumps({key: value for key, value in added.items() if isinstance(value, int)}), "utf-8"
        )
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).exists():
            settings = _settings(folder / name)
            (into / name).write_text(json.dumps(settings), "utf-8")
    if family is not None:
        (into / "config.json").write_text(json.dumps({"model_type": family}), "utf-8")


def _settings(path: Path) -> dict[str, Any]:
    values = read_config(path)
    special = {key for key in values if key.endswith("_token") and not key.startswith("add_")}
    length = values.pop("model_max_length", None)
    tokens = values.pop("added_tokens_decoder", None)  # may be long
    found = allowed(path, values, special | set(_SETTINGS))
    if isinstance(tokens, dict):
        found["added_tokens_decoder"] = tokens
    if isinstance(length, int | float) and 0 < length <= _MOST_LENGTH:  # transformers writes 1e30 for no limit
        found["model_max_length"] = int(length)
    return found


def _unusable(path: Path, error: Exception) -> WeightsError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return WeightsError(path, f"transformers cannot load `{path}`: {reason[:200]}", hint="download the model again")
