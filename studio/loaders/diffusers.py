"""diffusers' modules, schedulers and pipelines from untrusted folders.

A class gets only the keys that its constructor declares. A pipeline is built from components loaded one by one, since
the library's own loader imports the modules that `model_index.json` names.

Try it: ``module("AutoencoderKL", Path("folder/vae"))``
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from studio.errors import WeightsError, is_out_of_memory
from studio.loaders import allowed, check_index, check_size, offline, read_config


def config(kind: str | type, path: Path) -> dict[str, Any]:
    """The keys of a config that the class `kind` declares. Raises WeightsError."""
    values = allowed(path, read_config(path), declared(kind))
    _check_kinds(path, values, _class(kind))
    return values


def _check_kinds(path: Path, values: dict[str, Any], kind: Any) -> None:
    """Raise WeightsError for a text or an object in place of a number or list, and the reverse, by the annotations of
    the constructor. Some modules use such a value only while they run.
    """
    parameters = inspect.signature(kind.__init__).parameters
    for name, value in values.items():
        wanted = _annotated(kind, name) | _kind_of(parameters[name].default)
        if wrong := _kind_of(value) - wanted:
            message = f"`{name}` in `{path}` is {value!r:.60}: {min(wrong)} in place of {' or '.join(sorted(wanted))}"
            raise WeightsError(path, message, hint="download the model again, or use another")


_NUMBERS, _TEXT, _OBJECT = "numbers", "a text", "an object"
_ANY = frozenset({_NUMBERS, _TEXT, _OBJECT})


def _kind_of(value: Any) -> frozenset[str]:
    """The kind of a value, or of the items of a list; numbers include true and false. None and others have no kind."""
    if isinstance(value, list | tuple):
        return frozenset[str]().union(*map(_kind_of, value))
    kinds = ((bool | int | float, _NUMBERS), (str, _TEXT), (dict, _OBJECT))
    return frozenset(name for kind, name in kinds if isinstance(value, kind))


@cache
def _annotations(kind: type) -> dict[str, Any]:
    try:
        return get_type_hints(vars(kind)["__init__"])
    except (NameError, TypeError):  # an annotation that exists only for type checkers
        return {}


def _annotated(kind: type, name: str) -> frozenset[str]:
    """The kinds of values that a parameter's annotation admits; all without one."""
    return _admitted(_annotations(kind).get(name, Any))


def _admitted(annotation: Any) -> frozenset[str]:
    """The kinds of values that an annotation admits; of the items, for a list."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return _kind_of(list(parts))
    if origin is dict or annotation is dict:
        return frozenset({_OBJECT})
    if origin in (Union, UnionType, list, tuple, Sequence):
        return frozenset[str]().union(*(_admitted(each) for each in parts if each not in (Ellipsis, NoneType)))
    if origin is not None:
        return _ANY
    return {bool: frozenset({_NUMBERS}), int: frozenset({_NUMBERS}), float: frozenset({_NUMBERS}),
            str: frozenset({_TEXT})}.get(annotation, _ANY)  # fmt: skip


def module(kind: str | type, folder: Path) -> Any:
    """A module of class `kind` built from `config.json`, without weights. Raises WeightsError."""
    check_size(folder / "config.json", lambda: _made(kind, folder / "config.json"))
    return _made(kind, folder / "config.json")


def upcasts(kind: type, folder: Path) -> bool:
    """Whether the config of a VAE asks for float32 in place of float16."""
    default = inspect.signature(kind).parameters.get("force_upcast")
    if default is None:
        return False
    return bool(config(kind, folder / "config.json").get("force_upcast", default.default))


def scheduler(kind: str | type, folder: Path) -> Any:
    """A scheduler of class `kind`. Raises WeightsError.

    Its `config` also has the keys that only other schedulers declare: a replacement takes them over.
    """
    path = folder / "scheduler_config.json"
    made, values = _made(kind, path), read_config(path)
    others = [key for key in values if not key.startswith("_") and key not in made.config]
    made.register_to_config(**allowed(path, values, others))
    return made


def scheduler_of(kind: str, values: dict[str, Any]) -> Any:
    """A scheduler of class `kind` with values of another's config; keys that it does not declare are kept there."""
    known = declared(kind)
    made = _class(kind).from_config({key: value for key, value in values.items() if key in known})
    made.register_to_config(**{key: value for key, value in values.items() if key not in known})
    return made


def declared(kind: str | type) -> list[str]:
    """The keys of a config that the class `kind` declares."""
    return [name for name in inspect.signature(_class(kind).__init__).parameters if name != "self"]


def schedule_arguments(kind: str) -> set[str]:
    """The arguments of the scheduler's `set_timesteps`."""
    return set(inspect.signature(_class(kind).set_timesteps).parameters)


def pretrained(kind: str, folder: Path) -> Any:
    """A module of class `kind` with the folder's safetensors, float32. Raises WeightsError, ModelError."""
    import diffusers

    check_index(folder)
    config(kind, folder / "config.json")  # checked here first, since the library reads it too
    with offline(folder):
        try:
            return getattr(diffusers, kind).from_pretrained(
                folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
            )
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            raise _unusable(folder, error) from error


def pipeline(kind: str | type, index: dict[str, Any], path: Path, parts: dict[str, Any]) -> Any:
    """A pipeline of class `kind` of loaded components, with the plain settings of `model_index.json` at `path`.

    Components that are null there, and optional ones that are not there, are None. Raises WeightsError.
    """
    made = _class(kind)
    needed = inspect.signature(made.__init__).parameters
    settings = {key: value for key, value in index.items() if not isinstance(value, dict) and not _is_names(value)}
    nothing = {key for key in needed if key not in parts and (index.get(key) == [None, None] or key in _optional(made))}
    plain = allowed(path, settings, [key for key in needed if key not in parts])
    _check_kinds(path, plain, made)
    values = {**dict.fromkeys(nothing), **parts, **plain}
    lacking = [key for key, each in needed.items() if each.default is each.empty and key not in (*values, "self")]
    if lacking and all(needed[key].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for key in lacking):
        message = f"`{path}` lists no `{lacking[0]}`, which a `{made.__name__}` needs"
        raise WeightsError(path, message, hint="download the model again")
    try:
        return made(**values)
    except ImportError as error:  # of a package for a part that the library makes itself
        reason = str(error).strip().splitlines()[0]
        raise WeightsError(path, f"a `{made.__name__}` needs more packages: {reason[:200]}",
                           hint="install the package that it names") from error  # fmt: skip
    except (TypeError, ValueError, AttributeError) as error:
        raise _unusable(path, error) from error


def _optional(kind: Any) -> list[str]:
    return list(getattr(kind, "_optional_components", ()))


def _is_names(value: Any) -> bool:
    """Whether a value of `model_index.json` is the [library, class] of a component; [null, null] is None."""
    return isinstance(value, list) and len(value) == 2 and all(each is None or isinstance(each, str) for each in value)


def _class(kind: str | type) -> Any:
    import diffusers

    return getattr(diffusers, kind) if isinstance(kind, str) else kind


def _made(kind: str | type, path: Path) -> Any:
    values = config(kind, path)
    try:
        return _class(kind).from_config(values)
    except (
        ImportError,
        RuntimeError,
        TypeError,
        ValueError,
        KeyError,
        IndexError,
        AttributeError,
        NotImplementedError,
        ArithmeticError,
    ) as error:
        if is_out_of_memory(error):
            raise
        named, wanted = read_config(path).get("_class_name"), _class(kind).__name__
        if isinstance(named, str) and named != wanted:
            message = f"`{path}` is the config of a `{named:.80}`, but `model_index.json` names a `{wanted}`"
            raise WeightsError(path, message, hint="download the model again") from error
        raise _unusable(path, error) from error


def _unusable(path: Path, error: Exception) -> WeightsError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return WeightsError(path, f"diffusers cannot load `{path}`: {reason[:200]}", hint="download the model again")
