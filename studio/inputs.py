"""Inputs of generators: declared once; CLI options, JSON Schema, forms, workflow ports and help are derived from that.

A generator's `Inputs` is a pydantic model; `field` adds help and limits. `Inputs.parse` validates all values from
outside. It raises InputError (value, allowed range, remedy) or UnknownName (nearest name), never pydantic's own
errors. `Inputs.flags` describes the inputs for a command line.

Try it::

    class Blur(studio.Inputs):
        radius: float = studio.field(2.0, ge=0, le=50, help="in pixels")
    Blur.parse({"radius": 51})      # InputError: `radius` is 51 …
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from studio.errors import InputError, MediaError, UnknownName
from studio.input_messages import choices_of, describe, input_error, limit_of, problem, show, unwrap
from studio.media import Media
from studio.recipe import MediaRef
from studio.spec import Addition, ModelRef, source_and_weight

_MODEL = "x-studio-model"  # in the JSON Schema: the field of a ModelRef that the input sets
_BRACED = re.compile(r"\{(\w+)\}")
_MediaClass = type[Media]


def field(
    default: Any = ...,
    *,
    help: str,
    ge: float | None = None,
    le: float | None = None,
    gt: float | None = None,
    lt: float | None = None,
    multiple_of: float | None = None,
    min_length: int | None = None,
    max_length: int | None = None,
    choices: Sequence[Any] | None = None,
    default_factory: Callable[[], Any] | None = None,
    aliases: Sequence[str] = (),
) -> Any:
    """Declare an input of a generator or an option of a trainer.

    Args:
        default: the value if none is given; without it the input is required.
        help: one line for users; required.
        ge, gt, le, lt: limits of a number, inclusive (`ge`, `le`) or exclusive (`gt`, `lt`).
        multiple_of: the number must be a multiple of this.
        min_length, max_length: limits of the length of a text or a list.
        choices: the allowed values.
        default_factory: called without arguments for each default; for lists and other mutable values.
        aliases: other accepted names, such as ``num_inference_steps``. ``{width}x{height}`` builds the value from
            several names, which must be given together. Help, schema and recipes have only the main name.
    """
    extra: dict[str, Any] | None = {"enum": list(choices)} if choices is not None else None
    limits = {"ge": ge, "le": le, "gt": gt, "lt": lt, "multiple_of": multiple_of}
    limits |= {"min_length": min_length, "max_length": max_length}
    given: dict[str, Any] = {name: limit for name, limit in limits.items() if limit is not None}
    if default_factory is not None:
        info = Field(default_factory=default_factory, description=help, json_schema_extra=extra, **given)
    else:
        info = Field(default, description=help, json_schema_extra=extra, **given)
    info.metadata += [Alias(form) for form in aliases]
    return info


@dataclass(frozen=True)
class Alias:
    """Another name for an input or, with names in braces, a text that is built from several values."""

    form: str

    @property
    def names(self) -> tuple[str, ...]:
        """The accepted names."""
        return tuple(_BRACED.findall(self.form)) or (self.form,)

    def value(self, given: Mapping[str, Any]) -> Any:
        """The input's value, from a value for each name."""
        return self.form.format(**given) if self.form not in given else given[self.form]

    def take(self, main: str, given: dict[str, Any]) -> Any:
        """Remove the names from `given` and return the value of the input `main`; None if none of them is given.

        Raises InputError if `main` is given too, or if only some of several names are given.
        """
        found = {name: given.pop(name) for name in self.names if name in given}
        if found and main in given:
            message = f"`{main}` and `{next(iter(found))}` are one input, and both are given"
            raise InputError(main, message, hint="give one of them")
        if lacking := [name for name in self.names if name not in found] if found else []:
            message = f"`{next(iter(found))}` is given without `{lacking[0]}`"
            raise InputError(main, message, hint=f"give both, or `{main}`")
        return self.value(found) if found else None


def model_field(help: str) -> Any:
    """Declare the input that selects the weights: a pulled model, a source, a folder or a file; empty for the
    generator's own. The host locates the model; `Generator.weights` and `load` get its location as `ref.path`.
    """
    return Field("", description=help, max_length=4000, json_schema_extra={_MODEL: "source"})


def variant_field(default: str, *, help: str, choices: Sequence[str]) -> Any:
    """Declare the input that selects a variant of the weights, such as ``int8``; `Generator.load` gets it as
    `ref.variant`.
    """
    return Field(default, description=help, json_schema_extra={"enum": list(choices), _MODEL: "variant"})


def addition_field(kind: str, *, help: str, many: bool = True) -> Any:
    """Declare the input that names weights which are loaded with the model, such as ``lora``: a ``list[str]``, or with
    ``many=False`` a ``str``.

    Each is a downloaded model's name or source, a folder or a file; of several each may end in ``:WEIGHT``.
    `Generator.load` gets them as the additions of its ModelRef.
    """
    extra: dict[str, Any] = {_MODEL: "additions", "x-studio-kind": kind}
    if many:
        return Field(default_factory=list, description=help, max_length=16, json_schema_extra=extra)
    return Field("", description=help, max_length=4000, json_schema_extra=extra)


def _of_texts(kind: str, value: Any) -> Iterator[Addition]:
    """The additions that an input names; anything but text is ignored."""
    for text in [value] if isinstance(value, str) and value else value if isinstance(value, list | tuple) else []:
        if isinstance(text, str) and text:
            source, weight = (text, 1.0) if isinstance(value, str) else source_and_weight(text)
            try:
                yield Addition(kind=kind, source=source, weight=weight)
            except ValidationError:
                message = f"`{kind}` is `{text:.60}`; the name has at most 4000 characters, a weight is from -10 to 10"
                raise InputError(kind, message) from None


@dataclass(frozen=True)
class Flag:
    """The description of one input, for a command line or a form.

    `type` is ``int``, ``float``, ``str``, ``bool``, ``media`` or ``json`` (any other type, given as JSON text);
    `multiple` is true for a list of these; `media` is the media class if `type` is ``media``.
    `range` is the allowed range in words ("a whole number from 1 to 1000").
    """

    name: str
    type: Literal["int", "float", "str", "bool", "media", "json"]
    default: Any
    required: bool
    help: str
    range: str
    choices: tuple[Any, ...] = ()
    multiple: bool = False
    media: _MediaClass | None = None
    minimum: float | None = None
    maximum: float | None = None
    multiple_of: float | None = None
    aliases: tuple[Alias, ...] = ()

    @property
    def option(self) -> str:
        """The spelling on a command line: ``--guidance-scale``."""
        return "--" + self.name.replace("_", "-")


class Inputs(BaseModel):
    """Base of a generator's inputs: frozen, no unknown names, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, arbitrary_types_allowed=False)

    @field_validator("*", mode="after")
    @classmethod
    def _check_choice(cls, value: Any, info: Any) -> Any:
        allowed = choices_of(cls.model_fields[info.field_name])
        if allowed and any(each not in allowed for each in (value if isinstance(value, list | tuple) else [value])):
            raise ValueError("not one of the choices")
        return value

    @classmethod
    def main_names(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values with aliases replaced by the inputs' own names.

        Raises InputError if an input is given twice, or if a part of an alias is missing.
        """
        made = dict(values)
        for name, info in cls.model_fields.items():
            for alias in _aliases(info):
                if (value := alias.take(name, made)) is not None:
                    made[name] = value
        return made

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Validate values. Raises UnknownName, InputError, or MediaError for a file that cannot be read."""
        values = cls.main_names(values)
        for name in values:
            if name not in cls.model_fields:
                raise UnknownName("input", name, cls.model_fields)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise input_error(cls, error) from None

    @classmethod
    def problems(cls, values: Mapping[str, Any]) -> dict[str, str]:
        """What is wrong with these values, by input; missing inputs are not reported."""
        try:
            cls.model_validate(dict(values))
        except MediaError as error:
            return {"": error.message}
        except ValidationError as error:
            found = [each for each in error.errors(include_url=False) if each["type"] != "missing"]
            return {str(each["loc"][0]) if each["loc"] else "": problem(cls, each) for each in found}
        return {}

    @classmethod
    def flags(cls) -> list[Flag]:
        """List the declared inputs in order."""
        return [_flag(name, info) for name, info in cls.model_fields.items()]

    def as_recipe(self) -> dict[str, Any]:
        """The values as JSON, without those that select the weights; media are ``{"sha256", "media_type"}``."""
        left_out = {*_model_parts(type(self)).values(), *_additions(type(self))}
        return self.model_dump(mode="json", exclude=left_out)

    def model_ref(self) -> ModelRef:
        """The weights that these inputs select."""
        return self.model_ref_in({name: getattr(self, name) for name in type(self).model_fields})

    @classmethod
    def model_input(cls) -> str | None:
        """The name of the input that selects the model (see `model_field`), or None."""
        return _model_parts(cls).get("source")

    @classmethod
    def model_ref_in(cls, values: Mapping[str, Any]) -> ModelRef:
        """The same for values that were not validated yet; values that are not text are ignored."""
        given = {part: values.get(name) for part, name in _model_parts(cls).items()}
        added = [each for name, kind in _additions(cls).items() for each in _of_texts(kind, values.get(name))]
        parts = {part: value for part, value in given.items() if isinstance(value, str)}
        return ModelRef(**parts, additions=tuple(added))

    def media(self) -> list[Media]:
        """All media among the values, in order of declaration, including those in lists."""
        values = [getattr(self, name) for name in type(self).model_fields]
        flat = [each for value in values for each in (value if isinstance(value, list | tuple) else [value])]
        return [each for each in flat if isinstance(each, Media)]

    @classmethod
    def from_recipe(
        cls, values: Mapping[str, Any], fetch: Callable[[MediaRef], Media], model: ModelRef | None = None
    ) -> Self:
        """Validate the values of a recipe, which may be malicious: media only by hash through `fetch`, never by path.
        `model` selects the weights. Raises InputError if the generator has no such input.
        """
        resolved = cls.main_names(values)
        for part, given in (("source", model.source), ("variant", model.variant)) if model else ():
            if given and part not in _model_parts(cls):
                raise InputError("model", f"`model` has the {part} `{given}`, but the generator accepts none")
            if given:
                resolved[_model_parts(cls)[part]] = given
        resolved |= cls._added(model.additions if model else ())
        for flag in cls.flags():
            if flag.type == "media" and resolved.get(flag.name) is not None:
                given = resolved[flag.name]
                listed = given if flag.multiple and isinstance(given, list) else [given]  # it may have been one before
                many = [_fetch(each, flag.name, fetch) for each in listed]
                resolved[flag.name] = many if flag.multiple else many[0]
        return cls.parse(resolved)

    @classmethod
    def _added(cls, additions: Sequence[Addition]) -> dict[str, Any]:
        """The values of the inputs that name these additions."""
        made: dict[str, Any] = {}
        for each in additions:
            name = next((name for name, kind in _additions(cls).items() if kind == each.kind), None)
            if name is None:
                raise InputError("model", f"`model` has a `{each.kind}`, but the generator accepts none")
            if not each.source:
                raise InputError("model", f"`model` has a `{each.kind}` without a source")
            if cls.model_fields[name].annotation is str:
                if name in made or each.weight != 1:
                    raise InputError("model", f"`model` has several `{each.kind}`, or one with a weight; it takes one")
                made[name] = each.source
            else:
                made[name] = [*made.get(name, ()), f"{each.source}:{Decimal(repr(each.weight)):f}"]
        return made


@cache
def _model_parts(cls: type[Inputs]) -> Mapping[str, str]:
    """The inputs that set a field of the ModelRef, by field."""
    extra = {name: info.json_schema_extra for name, info in cls.model_fields.items()}
    found = {name: str(each[_MODEL]) for name, each in extra.items() if isinstance(each, dict) and _MODEL in each}
    return {part: name for name, part in found.items() if part != "additions"}


@cache
def _additions(cls: type[Inputs]) -> Mapping[str, str]:
    """The inputs that name additions to the model, with their kind."""
    extra = {name: info.json_schema_extra for name, info in cls.model_fields.items()}
    return {name: str(each["x-studio-kind"]) for name, each in extra.items()
            if isinstance(each, dict) and each.get(_MODEL) == "additions"}  # fmt: skip


def _fetch(value: Any, name: str, fetch: Callable[[MediaRef], Media]) -> Media:
    try:
        return fetch(MediaRef.model_validate(value))
    except ValidationError:
        raise InputError(name, f"the recipe's `{name}` must name media by sha256, not {show(value)}") from None


def _flag(name: str, info: FieldInfo) -> Flag:
    kind, multiple, literal = unwrap(info.annotation)
    media = kind if isinstance(kind, type) and issubclass(kind, Media) else None
    names = {int: "int", float: "float", str: "str", bool: "bool"}
    type_name: Any = "media" if media else names.get(kind, "json")
    low, high = limit_of(info, "ge", "gt"), limit_of(info, "le", "lt")
    return Flag(
        name=name,
        type=type_name,
        default=None if info.default is PydanticUndefined else info.get_default(call_default_factory=False),
        required=info.is_required(),
        help=info.description or "",
        range=describe(info),
        choices=literal or tuple(choices_of(info)),
        multiple=multiple,
        media=media,
        minimum=low,
        maximum=high,
        multiple_of=limit_of(info, "multiple_of"),
        aliases=_aliases(info),
    )


def _aliases(info: FieldInfo) -> tuple[Alias, ...]:
    return tuple(each for each in info.metadata if isinstance(each, Alias))
