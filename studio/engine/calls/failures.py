"""Turning whatever a plugin raises or returns into one StudioError, without keeping its memory alive.

Any exception counts, also `SystemExit`: in the engine's thread only a plugin can raise it.

Try it: ``pytest tests/studio/engine/calls/test_failures.py``
"""

from __future__ import annotations

import traceback
from collections.abc import Hashable, Sequence
from typing import Any, TypeGuard

from studio.errors import (
    GeneratorFailed,
    OutOfMemory,
    StudioError,
    class_name,
    clean,
    describe,
    is_out_of_memory,
    linked,
    trace_of,
)  # fmt: skip
from studio.finite import NotFinite
from studio.generator import Generator, State
from studio.media import Image, Media

_LONGEST = 20_000  # characters of a message
_RELIED_ON = {  # what the class of an exception shown to users must not override
    *("message", "hint", "args", "traceback_text", "__traceback__", "__cause__", "__context__", "__suppress_context__"),
    *("__notes__", "__class__", "__dict__", "__getattribute__", "__getattr__", "__setattr__", "__str__", "__repr__"),
    *("__format__", "__hash__", "__eq__", "__ne__", "__reduce__", "__reduce_ex__", "__del__"),
}


class InvalidReturn(Exception):
    """A generator returned an invalid value."""


def as_error(generator: str, where: str, error: BaseException) -> StudioError:
    """Return a StudioError for what was raised in `where` (``load``, ``start``, ``step 3`` …).

    A StudioError stays itself, unless its class overrides what Studio relies on. Never raises, whatever the exception's
    own code does. The traceback is kept as text and dropped, frames and all: a local variable of the plugin must not
    keep tensors alive.
    """
    text = trace_of(error)
    found = error if _sound(error) else _explain(generator, where, error)
    found.traceback_text = text
    _drop_frames(error)
    return found


def _sound(error: BaseException) -> TypeGuard[StudioError]:
    """Whether an error can be shown to users unchanged: it is an error of Studio, or a plain subclass of one."""
    kind = type(error)  # not `isinstance`, which asks the object's own `__class__`
    if not issubclass(kind, StudioError):
        return False
    foreign = [each for each in kind.__mro__ if issubclass(each, StudioError) and each.__module__ != "studio.errors"]
    if type(kind) is not type or any(name in _RELIED_ON for each in foreign for name in vars(each)):
        return False
    texts = (vars(error).get("message"), vars(error).get("hint") or "")
    plain = all(type(text) is str and text == clean(text, _LONGEST) for text in texts)
    return plain and type(kind.exit_code) is int


def _explain(generator: str, where: str, error: BaseException) -> GeneratorFailed:
    kind = type(error)
    if is_out_of_memory(error):
        said = describe(error, 200).partition(": ")[2] or "no memory left"
        hint = "use a smaller size or fewer requests at once, or free memory that other programs use"
        return OutOfMemory(generator, f"`{generator}` ran out of memory in {where}: {said}", hint=hint)
    if kind is NotFinite and isinstance(error, NotFinite):
        return GeneratorFailed(generator, f"`{generator}` failed in {where}: {error}", hint=error.hint)
    reason = str(error) if kind is InvalidReturn else describe(error, 500)
    hint = "this is a bug in the plugin; `--debug` shows the traceback"
    return GeneratorFailed(generator, f"`{generator}` failed in {where}: {reason}", hint=hint)


def _drop_frames(error: BaseException) -> None:
    """Clear the tracebacks of an exception and of its causes and contexts."""
    held = vars(BaseException)["__traceback__"]
    for each in linked(error):
        traceback.clear_frames(held.__get__(each))
        held.__set__(each, None)


def check_state(state: object) -> State:
    """Return the state if it is valid. Raises InvalidReturn."""
    if not isinstance(state, State):
        raise InvalidReturn(f"returned {_kind(state)}, expected a State")
    if not (_whole(state.position) and _whole(state.steps) and state.position >= 0):
        place = f"{state.position!r} of {state.steps!r}"
        raise InvalidReturn(f"returned a State at position {place}; both must be integers, at least 0")
    notices = state.notices
    if not isinstance(notices, tuple) or (notices and not all(isinstance(each, str) for each in notices)):
        raise InvalidReturn("returned a State whose notices are not a tuple of str")
    return state


def check_step(given: Sequence[State], made: object) -> list[State]:
    """Return the next states if there is one for each given state, each at a later position. Raises InvalidReturn."""
    states = list(map(check_state, _as_many(made, len(given), "state")))
    for old, new in zip(given, states, strict=True):
        if new.position <= old.position and not new.done:
            raise InvalidReturn(f"returned a State that is still at position {new.position} of {new.steps}")
    return states


def check_finish(generator: Generator, made: object, count: int) -> list[Media]:
    """Return the media if there are `count`, each of the generator's output type. Raises InvalidReturn."""
    return [check_media(generator, each) for each in _as_many(made, count, "media")]


def check_delta(piece: object) -> str:
    """Return the piece of text as a plain `str`. Raises InvalidReturn."""
    if not isinstance(piece, str):
        raise InvalidReturn(f"returned {_kind(piece)}, expected str")
    return str(piece)


def check_key(key: object) -> Hashable:
    """Return the batch key if it is hashable. Raises InvalidReturn."""
    try:
        hash(key)
    except Exception:
        raise InvalidReturn(f"returned a batch key that is not hashable: {_kind(key)}") from None
    return key


def check_preview(generator: Generator, media: Any) -> Media:
    """Return the preview if it is of the generator's output type, or a picture. Raises InvalidReturn."""
    return media if isinstance(media, Image) else check_media(generator, media)


def check_media(generator: Generator, media: Any) -> Media:
    """Return the media if it is of the generator's output type. Raises InvalidReturn."""
    if not isinstance(media, generator.output):
        raise InvalidReturn(f"returned {_kind(media)}, expected studio.{generator.output.__name__}")
    return media


def _as_many(made: object, count: int, what: str) -> Sequence[Any]:
    if type(made) is not list and (not isinstance(made, Sequence) or isinstance(made, str | bytes)):
        raise InvalidReturn(f"returned {_kind(made)}, expected a list of {what}s")
    if len(made) != count:
        raise InvalidReturn(f"returned {len(made)} {what}s for {count}")
    return made


def _whole(value: object) -> bool:
    return type(value) is int  # a subclass may compare as it likes


def _kind(value: object) -> str:
    return "None" if value is None else f"a {class_name(type(value))}"
