"""The errors of Studio, one drawn tree.

    StudioError                 exit code 1 unless said otherwise
    ├── UsageError              2  what was asked cannot be done as asked
    │   ├── InputError             an input's value is refused
    │   ├── UnknownName            no such generator, input, plugin, hook …; names the nearest
    │   └── WorkflowError          a workflow is not right; holds all that is wrong with it
    ├── PluginError             1  a plugin could not be used
    ├── WeightsError            1  weights are missing or damaged
    ├── ModelError              1  a model cannot be fetched, is not here, or is not in a safe format
    ├── MediaError              1  a picture, video … cannot be decoded or encoded
    ├── StoreError              1  the artifact store cannot read or write
    │   ├── FileTaken              a file to write exists already
    │   └── NotStored              the data folder cannot take the media that were made; holds them
    ├── CheckpointError         1  a saved request cannot be taken up again
    ├── GeneratorFailed         1  a generator raised, or returned what it must not
    │   ├── OutOfMemory            it did not fit into memory
    │   └── TimedOut               it did not return in time
    ├── DeviceLost              1  a device cannot be used, or cannot be opened
    ├── EngineClosed            1  the engine was closed before or during the work
    ├── Busy                    1  too many requests are unfinished to accept more
    └── Cancelled             130  the request was cancelled

Every message names the value, the allowed range and, as `hint`, the remedy. This module knows nothing of the rest of
Studio and imports only the standard library.

Try it: ``python -c "import studio; raise studio.errors.UnknownName('generator', 'imge', ['image'])"``
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from studio.media import Media

_LONGEST_TEXT = 10_000  # characters of an exception's text above which its traceback is written without it
_LONGEST_TRACE = 100_000  # characters of a traceback
_MOST_LINKED = 100  # exceptions that are looked at behind one


class StudioError(Exception):
    """Base of every error that Studio raises on purpose.

    `str()` gives the message and, if there is one, the remedy on a second line that starts with ``hint: ``.
    `exit_code` is what a command-line face should exit with. `traceback_text` is a plugin's traceback where one raised,
    kept as text so that no frame (and no tensor in it) stays alive.
    """

    exit_code = 1
    traceback_text = ""
    details: ClassVar[tuple[str, ...]] = ()  # attributes, texts or lists of them, that its JSON form has too

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message

    def to_json(self) -> dict[str, Any]:
        """The error as JSON values: `type` (the nearest class of this module), `message`, `hint` and its details."""
        kind = next(each for each in type(self).__mro__ if each in _portable().values())
        told = {"type": kind.__name__, "message": self.message, "hint": self.hint}
        return told | {name: _plain(getattr(self, name)) for name in kind.details}  # type: ignore[attr-defined]

    @staticmethod
    def from_json(told: object) -> StudioError:
        """The error that `to_json` told of, which may be hostile. Raises InputError for anything else."""
        values = told if isinstance(told, dict) else {}
        kind = _portable().get(str(values.get("type", "")))
        hint = values.get("hint")
        if kind is None or not isinstance(values.get("message"), str) or not isinstance(hint, str | None):
            raise InputError("error", f"`error` is {str(told)[:60]!r}, but must have a `type` and a `message`")
        made = kind.__new__(kind)
        StudioError.__init__(made, values["message"], hint=hint)
        for name in kind.details:
            value = _read(values.get(name))
            setattr(made, name, Path(str(value)) if name == "path" else value)
        return made


class UsageError(StudioError):
    """What was asked cannot be done as asked."""

    exit_code = 2


class InputError(UsageError):
    """A value of an input is refused. `field` names the (first) input at fault."""

    details = ("field",)

    def __init__(self, field: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.field = field


_LISTED = 20


class UnknownName(UsageError):
    """There is no `kind` called `name`; the hint names the nearest of `candidates`."""

    details = ("kind", "name", "nearest", "candidates")

    def __init__(self, kind: str, name: str, candidates: Iterable[str]) -> None:
        self.kind, self.name, self.candidates = kind, name, tuple(candidates)
        self.nearest = nearest(name, self.candidates)
        shown = self.candidates[: len(self.candidates) if len(self.candidates) <= _LISTED + 4 else _LISTED]
        known = ", ".join(f"`{c}`" for c in shown) or "none"
        more = f" and {len(self.candidates) - len(shown)} more" if len(shown) < len(self.candidates) else ""
        guess = f"did you mean `{self.nearest}`? " if self.nearest else ""
        super().__init__(f"no {kind} is called `{name}`", hint=f"{guess}known: {known}{more}")


class WorkflowError(UsageError):
    """A workflow is not right. `problems` has a line of message, with file and line, and a remedy or None for each; the
    error's own message tells the first of them, and how many more there are.
    """

    details = ("problems",)
    _TOLD = 20

    def __init__(self, problems: Sequence[tuple[str, str | None]]) -> None:
        self.problems = tuple(problems)
        lines = [f"{message} ({hint})" if hint else message for message, hint in self.problems[1 : self._TOLD]]
        if more := self.problems[self._TOLD :]:
            lines.append(f"and {len(more):,} more")
        super().__init__("\n".join([self.problems[0][0], *lines]), hint=self.problems[0][1])


class PluginError(StudioError):
    """A plugin could not be imported, or what it registers cannot be used."""


class WeightsError(StudioError):
    """Weights are missing or damaged. `expected` and `actual` are sha256 in hex, where known."""

    details = ("path", "expected", "actual")

    def __init__(
        self,
        path: Path,
        message: str,
        *,
        expected: str | None = None,
        actual: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.path, self.expected, self.actual = path, expected, actual


class ModelError(StudioError):
    """A model cannot be fetched, is not here, is damaged, or is in no safe format."""


class MediaError(StudioError):
    """Media cannot be decoded (unknown format, truncated, too large) or encoded."""


class StoreError(StudioError):
    """The artifact store has no such artifact, or cannot be read or written."""


class FileTaken(StoreError):
    """A file to write exists already, and was not to be overwritten. `path` is its path."""

    details = ("path",)

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(f"`{path}` exists already", hint="choose another name, or give --force to overwrite it")


class NotStored(StoreError):
    """Media were made, and the data folder cannot take them. `media` are the media, with their recipe."""

    def __init__(self, media: Media, error: StoreError) -> None:
        self.media = media
        super().__init__(error.message, hint=error.hint)


class CheckpointError(StudioError):
    """A saved request is damaged, or what it was begun with is no longer here. `path` is its file."""

    details = ("path",)

    def __init__(self, path: Path, reason: str, *, hint: str | None = None) -> None:
        self.path = path
        hint = hint or "begin the request anew; `studio resume --drop ID` removes what was saved"
        super().__init__(f"the saved request `{path.stem}` cannot be taken up: {reason}", hint=hint)


class GeneratorFailed(StudioError):
    """The named generator raised or returned what it must not; the engine goes on without it."""

    details = ("generator",)

    def __init__(self, generator: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.generator = generator


class OutOfMemory(GeneratorFailed):
    """The work did not fit into the device's memory."""


class TimedOut(GeneratorFailed):
    """A call did not return in time and was abandoned; `over` says whether it has returned since."""

    over: Callable[[], bool] = staticmethod(lambda: True)

    def __init__(
        self, generator: str, message: str, *, hint: str | None = None, over: Callable[[], bool] = lambda: True
    ) -> None:
        super().__init__(generator, message, hint=hint)
        self.over = over


class DeviceLost(StudioError):
    """The device cannot be used by this process any more, or could not be opened: no request can run on it."""


class EngineClosed(StudioError):
    """The engine was closed before the request was done."""


class Busy(StudioError):
    """As many requests are unfinished as may be; none of those given was accepted."""


class Cancelled(StudioError):
    """The request was cancelled."""

    exit_code = 130


@cache
def _portable() -> dict[str, type[StudioError]]:
    """The classes that have a JSON form, by name: all of this module but NotStored, which holds media."""
    known = {name: each for name, each in globals().items() if isinstance(each, type)}
    return {name: each for name, each in known.items() if issubclass(each, StudioError) and each is not NotStored}


def _plain(value: object) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return value if value is None else str(value)


def _read(value: object) -> Any:
    return tuple(map(_read, value)) if isinstance(value, list) else value if value is None else str(value)


def clean(text: str, limit: int) -> str:
    """At most `limit` characters of a text from a plugin; what is not printable in it is written as an escape."""
    kept = str.__getitem__(text, slice(0, limit))  # a plain str, also of a subclass that overrides everything
    return "".join(each if each.isprintable() or each == "\n" else ascii(each)[1:-1] for each in kept)


def describe(error: BaseException, limit: int = 300) -> str:
    """Class and text of any exception in one line, at most `limit` characters of each. Never raises: an exception may
    override whatever it likes.
    """
    if issubclass(type(error), SystemExit):
        code = vars(SystemExit)["code"].__get__(error)
        plain = code is None or type(code) is str or (type(code) is int and abs(code) < 1 << 32)
        return f"called sys.exit({clean(repr(code), limit) if plain else '…'})"
    return f"{class_name(type(error))}: {_one_line(error, limit)}".rstrip(": ")


def linked(error: BaseException) -> list[BaseException]:
    """The exception, its causes, contexts and members, at most 100. Never raises."""
    found: dict[int, BaseException] = {}
    waiting: list[BaseException | None] = [error]
    while waiting and len(found) < _MOST_LINKED:
        each = waiting.pop()
        if each is None or id(each) in found:
            continue
        found[id(each)] = each
        if issubclass(type(each), BaseExceptionGroup):
            waiting += vars(BaseExceptionGroup)["exceptions"].__get__(each)
        waiting += [vars(BaseException)[name].__get__(each) for name in ("__context__", "__cause__")]
    return list(found.values())


def trace_of(error: BaseException) -> str:
    """The traceback of any exception as text, of bounded length. Never raises."""
    import traceback

    try:
        if all(len(str(each)) < _LONGEST_TEXT for each in linked(error)):
            text = "".join(traceback.format_exception(error))
        else:
            text = "".join([*traceback.format_tb(error.__traceback__), describe(error), "\n"])
        return clean(text, _LONGEST_TRACE)
    except BaseException:  # its own code was run, and may do anything
        return f"{class_name(type(error))}: its traceback cannot be written, as it raises again\n"


def class_name(kind: type) -> str:
    """The name of a class, at most 100 characters of it. Never raises: a metaclass may override it."""
    name: str = vars(type)["__name__"].__get__(kind)
    return clean(name, 100)


def _one_line(error: BaseException, limit: int) -> str:
    try:
        lines = clean(str(error), 4 * limit).split()
    except BaseException:  # its own code, which may do anything
        return "(its text cannot be had, as `str()` of it raises)"
    return " ".join(lines)[:limit]


def nearest(name: str, candidates: Sequence[str]) -> str | None:
    """Return the candidate that is spelt most like `name`, or None if none is near."""
    import difflib

    found = difflib.get_close_matches(name, candidates, n=1, cutoff=0.6)
    return found[0] if found else None
