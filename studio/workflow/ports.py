"""Ports: the types of a node's inputs and output, and which output fits which input.

A port is a kind, and whether it is a list. Kinds are the media (text, image, video, audio, embedding) and plain values
(int, float, bool, json).

Try it: ``python -c "from studio.workflow.ports import Port; print(Port('image', many=True))"``
"""

from __future__ import annotations

from dataclasses import dataclass

from studio.inputs import Flag
from studio.media import Audio, Embedding, Image, Media, Text, Video

MEDIA: dict[str, type[Media]] = {each.kind: each for each in (Text, Image, Video, Audio, Embedding)}
_PLAIN = {str: "text", bool: "bool", int: "int", float: "float"}
_NOUNS = {"text": "text", "int": "a whole number", "float": "a number", "bool": "true or false", "json": "any value"}


@dataclass(frozen=True)
class Port:
    """A kind of value, and whether it is a list of them."""

    kind: str
    many: bool = False

    def __str__(self) -> str:
        noun = _NOUNS.get(self.kind) or MEDIA[self.kind].noun
        return f"a list, each {noun}" if self.many else noun

    def feeds(self, target: Port) -> bool:
        """Whether a value of this type can be used where `target` is expected."""
        if self.many != target.many:
            return target.kind == "json" and (self.kind == "json" or self.kind not in MEDIA or self.kind == "text")
        if target.kind == "json":
            return self.kind not in MEDIA or self.kind == "text"
        return self.kind in (target.kind, "json") or (self.kind, target.kind) == ("int", "float")


def port_of_flag(flag: Flag) -> Port:
    """The port of a generator's input."""
    if flag.media is not None:
        return Port(flag.media.kind, flag.multiple)
    return Port("text" if flag.type == "str" else flag.type, flag.multiple)


def port_of_value(value: object) -> Port:
    """The port of a plain value or of media."""
    if isinstance(value, list | tuple):
        kinds = {port_of_value(each).kind for each in value}
        return Port(kinds.pop() if len(kinds) == 1 else "json", many=True)
    if isinstance(value, Media):
        return Port(value.kind)
    return Port(_PLAIN.get(type(value), "json"))
