"""The plugin contract: the reasons why a generator or a trainer is not valid.

`studio plugins` shows them; nothing of a model is loaded.

Try it: ``python -c "import studio; from studio.contract import check; print(check(studio.Generator()))"``
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence

from studio.generator import Generator, Trainer
from studio.inputs import Flag
from studio.inputs import Inputs as BaseInputs
from studio.media import Media
from studio.spec import OPTIONS

_HOST_NAMES = (*OPTIONS, "n", "output", "json")
_NAME = re.compile(r"^[a-z][a-z0-9_-]{0,49}$")


def check(generator: object) -> list[str]:
    """Return the reasons why this is not a valid generator; empty if it is."""
    if isinstance(generator, type):
        return [f"`{generator.__name__}` is a class; register an instance: `{generator.__name__}()`"]
    if not isinstance(generator, Generator):
        return [f"{type(generator).__name__} is not a studio.Generator"]
    kind = type(generator)
    return [*_check_identity(generator), *_check_types(generator), *_check_load(generator), *_check_form(kind)]


def check_trainer(trainer: object) -> list[str]:
    """Return the reasons why this is not a valid trainer; empty if it is."""
    if not isinstance(trainer, Trainer):
        return [f"{getattr(trainer, '__name__', type(trainer).__name__)} is not an instance of studio.Trainer"]
    reasons = [] if good_name(trainer.name) else [_bad_name(trainer.name)]
    if not (isinstance(trainer.Options, type) and issubclass(trainer.Options, BaseInputs)):
        reasons.append("`Options` is not a subclass of studio.Inputs")
    else:
        reasons += _check_names(trainer.Options)
    if not trainer.runs and not trainer.starter:
        reasons.append("defines no `run`")
    return reasons


def good_name(name: object) -> bool:
    """Whether this is a valid name of a generator or trainer."""
    return isinstance(name, str) and bool(_NAME.match(name))


def _bad_name(name: object) -> str:
    return f"its name is {name!r}; a name is 1 to 50 of a-z, 0-9, `-` and `_`, starting with a letter"


def _check_identity(generator: Generator) -> list[str]:
    reasons = [] if good_name(generator.name) else [_bad_name(generator.name)]
    if not isinstance(generator.version, str) or not generator.version:
        reasons.append(f"its version is {generator.version!r}; a version is text, such as '1'")
    if not isinstance(generator.max_batch, int) or generator.max_batch < 1:
        reasons.append(f"its max_batch is {generator.max_batch!r}; it must be a whole number of at least 1")
    if not isinstance(generator.time_limit_s, int | float) or not generator.time_limit_s > 0:
        reasons.append(f"its time_limit_s is {generator.time_limit_s!r}; it must be a number of seconds above 0")
    if not generator.summary or type(generator).__doc__ == Generator.__doc__:
        reasons.append("has no docstring; its first line is the summary that users see")
    return reasons


def _check_types(generator: Generator) -> list[str]:
    reasons = []
    output, inputs = generator.output, generator.Inputs
    if not (isinstance(output, type) and issubclass(output, Media)) or output is Media:
        reasons.append(f"its output is {output!r}; it must be studio.Text, Image, Video, Audio or Embedding")
    if not (isinstance(inputs, type) and issubclass(inputs, BaseInputs)):
        reasons.append("`Inputs` is not a subclass of studio.Inputs")
    else:
        for flag in inputs.flags():
            if not flag.help:
                reasons.append(f"its input `{flag.name}` has no help; declare it with studio.field(help=…)")
            for name in (flag.name, *(name for alias in flag.aliases for name in alias.names)):
                if name in _HOST_NAMES:
                    reasons.append(f"its input `{name}` has a name that is reserved for the host")
        reasons += [*_check_names(inputs), *_check_aliases(inputs.flags())]
    return reasons


def _check_names(inputs: type[BaseInputs]) -> list[str]:
    """A field with the name of an attribute of `studio.Inputs` would replace it."""
    reason = "its input `{}` has the name of an attribute of studio.Inputs; choose another name"
    return [reason.format(name) for name in inputs.model_fields if hasattr(BaseInputs, name)]


def _check_aliases(flags: Sequence[Flag]) -> list[str]:
    aliases = [name for flag in flags for alias in flag.aliases for name in alias.names]
    names = [*(flag.name for flag in flags), *aliases]
    reasons = [f"its alias `{name}` is also another input" for name in dict.fromkeys(aliases) if names.count(name) > 1]
    return reasons + [f"its alias {name!r} is not a name" for name in aliases if not name.isidentifier()]


def _check_load(generator: Generator) -> list[str]:
    """Plugins of before 0.2 had `load(device, dtype)` and `weights()`."""
    taken = {"load": ("ref", "device", "dtype"), "weights": ("ref",)}
    reasons = []
    for name, wanted in taken.items():
        try:
            inspect.signature(getattr(generator, name)).bind(*wanted)
        except TypeError:
            reasons.append(f"its `{name}` must take ({', '.join(wanted)}), where `ref` is a studio.ModelRef")
    return reasons


def _check_form(kind: type[Generator]) -> list[str]:
    stepped = [name for name in ("start", "step", "finish") if getattr(kind, name) is not getattr(Generator, name)]
    simple = kind.generate is not Generator.generate
    if simple and stepped:
        return [f"defines both `generate` and {', '.join(f'`{name}`' for name in stepped)}; define only one form"]
    if not simple and len(stepped) != 3:
        missing = [f"`{name}`" for name in ("start", "step", "finish") if name not in stepped]
        return [f"defines no `generate`, and no {', '.join(missing)}"]
    return []
