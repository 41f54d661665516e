"""Input values for testing a generator: valid ones from its declaration, and invalid ones from its JSON Schema.

Valid values are the defaults, and for inputs without a default a short text, a small picture, a tone and so on. Each
invalid value is just outside one declared limit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from studio.errors import InputError
from studio.inputs import Flag, Inputs
from studio.media import Media

WORDS = "a red apple"
_SIDE = 32  # pixels
_MOST_LETTERS = 1 << 21  # a text longer than this proves no more


def good_values(kind: type[Inputs], given: Mapping[str, Any]) -> dict[str, Any]:
    """Values that `kind` accepts: `given`, and samples for the other required inputs.

    If these are rejected, for example because one of several optional inputs is needed, each omitted text or media
    input is tried in turn. Raises InputError, which asks for values, if none is accepted.
    """
    open_flags = [flag for flag in kind.flags() if flag.name not in given]
    declared = kind.model_json_schema().get("properties", {})
    samples = {flag.name: sample(flag, declared.get(flag.name, {}).get("minItems", 1)) for flag in open_flags}
    values = {**{flag.name: samples[flag.name] for flag in open_flags if flag.required}, **given}
    optional = [flag for flag in open_flags if not flag.required and flag.type in ("str", "media")]
    refused: InputError | None = None
    for more in ({}, *({flag.name: samples[flag.name]} for flag in optional)):
        try:
            kind.parse({**values, **more})
            return {**values, **more}
        except InputError as error:
            refused = refused or error
    assert refused is not None
    refused.hint = "name values that it accepts: `inputs={…}`, or `--input NAME=VALUE`"
    raise refused


def sample(flag: Flag, least: int = 1) -> Any:
    """A value for an input without a default; a list has `least` items, and its texts differ."""
    one: Any
    if flag.choices:
        one = flag.choices[0]
    elif flag.media is not None:
        one = sample_media(flag.media)
    elif flag.type in ("int", "float"):
        one = _number(flag)
    else:
        one = {"str": WORDS, "bool": False}.get(flag.type, {})
    if not flag.multiple:
        return one
    unlike = flag.type == "str" and not flag.choices
    return [f"{one} {number}" if unlike and number else one for number in range(max(least, 1))]


def sample_media(kind: type[Media]) -> Media:
    """Small media of a kind: a 32x32 gradient, eight frames of it, 0.1 s of a tone, or three words."""
    if kind.kind == "text":
        from studio.media import Text

        return Text(WORDS)
    import numpy as np

    ramp = np.linspace(0, 255, _SIDE, dtype=np.uint8)
    picture = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], np.uint8(90)), axis=-1)
    if kind.kind == "image":
        from studio.media import Image

        return Image.from_array(picture)
    if kind.kind == "video":
        from studio.media import Video

        return Video(np.stack([np.roll(picture, 2 * frame, axis=1) for frame in range(8)]), fps=8)
    if kind.kind == "audio":
        from studio.media import Audio

        return Audio(0.3 * np.sin(np.arange(1600)[None] * 0.17).astype(np.float32), 16000)
    from studio.media import Embedding

    return Embedding(np.ones(8, np.float32) / np.float32(8**0.5))


def bad_values(kind: type[Inputs]) -> Iterator[tuple[str, str, Any]]:
    """Yield (input, reason, invalid value) for each limit in the JSON Schema."""
    schema = kind.model_json_schema()
    for name, described in schema.get("properties", {}).items():
        for each in _alternatives(described, schema.get("$defs", {})):
            for why, value in _outside(each):
                yield name, why, value


def _alternatives(described: Mapping[str, Any], defs: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The declared type, without the null of an optional input; empty if several types are allowed."""
    if "$ref" in described:
        described = defs[described["$ref"].rpartition("/")[2]]
    several = [each for each in described.get("anyOf", [described]) if each.get("type") != "null"]
    return several if len(several) == 1 else []


def _outside(described: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    kind = described.get("type")
    if wrong := {"integer": "seven", "number": "much", "boolean": "perhaps", "array": 7, "object": 7}.get(str(kind)):
        yield f"no {kind}", wrong
    if kind == "number":
        yield "not finite", float("nan")
    if kind == "integer":
        yield "not whole", 1.5
    if kind == "string":
        yield "no text", {"not": "text"}
    if described.get("format") == "path" and described.get("x-studio-media") != "text":
        yield "no such file", "/nonexistent/file"
    if "enum" in described:
        yield "not one of the choices", "none of these" if kind == "string" else -12345
    limits = {"minimum": -1, "maximum": 1, "exclusiveMinimum": 0, "exclusiveMaximum": 0}
    for limit, beyond in limits.items():
        if limit in described:
            yield f"beyond {limit} {described[limit]}", described[limit] + beyond
    if "minLength" in described and described["minLength"] > 0:
        yield f"under minLength {described['minLength']}", "x" * (described["minLength"] - 1)
    if described.get("maxLength", _MOST_LETTERS) < _MOST_LETTERS:
        yield f"over maxLength {described['maxLength']}", "x" * (described["maxLength"] + 1)


def _number(flag: Flag) -> float:
    """A number within the limits: the lower limit or, if that is exclusive, a number above it."""
    low, high = flag.minimum, flag.maximum
    value = 1.0 if low is None else low if high is None else (low + high) / 2
    value = min(value, high) if high is not None else value
    if flag.multiple_of:
        value = -(-value // flag.multiple_of) * flag.multiple_of
    return int(value) if flag.type == "int" else float(value)
