"""The errors of Studio, one drawn tree.

    StudioError                 exit code 1 unless said otherwise
    ├── UsageError              2  the request is invalid
    │   ├── InputError             an input's value is invalid
    │   ├── UnknownName            no such generator, input, plugin, hook …; suggests the nearest
    │   └── WorkflowError          a workflow is invalid; lists all its problems
    ├── PluginError             1  a plugin cannot be used
    ├── WeightsError            1  weights are missing or damaged
    ├── ModelError              1  a model is not downloaded, cannot be, or is not in a safe format
    ├── MediaError              1  an image, video … cannot be decoded or encoded
    ├── StoreError              1  the artifact store cannot read or write
    │   ├── FileTaken              the output file already exists
    │   └── NotStored              the output cannot be written to the data folder; holds it
    ├── CheckpointError         1  a saved request cannot be resumed
    ├── GeneratorFailed         1  a generator raised, or returned an invalid value
    │   ├── OutOfMemory            out of memory (OOM)
    │   └── TimedOut               a call exceeded its timeout
    ├── DeviceLost              1  a device cannot be used, or cannot be opened
    ├── EngineClosed            1  the engine was closed before or during the work
    ├── Busy                    1  too many requests are unfinished to accept more
    └── Cancelled             130  the request was cancelled

Every message names the value, the allowed range and, as `hint`, the remedy. This module imports only the standard
library.

Try it: ``python -c "import studio; raise studio.errors.UnknownName('generator', 'imge', ['image'])"``
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

MediaT = TypeVar("MediaT")

_LONGEST_TEXT = 10_000  # characters of an exception's text above which its traceback is written without it
_LONGEST_TRACE = 100_000  # characters of a traceback
_MOST_LINKED = 100  # exceptions that are looked at behind one


class StudioError(Exception):
    """Base of Studio's errors.

    `str()` gives the message and, if there is one, the remedy on a second line that starts with ``hint: ``.
    `exit_code` is the exit code of the command line. `traceback_text` is the traceback of a plugin, as text so that no
    frame (and no tensor in it) stays alive.
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
        found = {"type": kind.__name__, "message": self.message, "hint": self.hint}
        return found | {name: _plain(getattr(self, name)) for name in kind.details}  # type: ignore[attr-defined]

    @staticmethod
    def from_json(found: object) -> StudioError:
        """The error from the untrusted result of `to_json`. Raises InputError for anything else."""
        values = found if isinstance(found, dict) else {}
        kind = _portable().get(str(values.get("type", "")))
        hint = values.get("hint")
        if kind is None or not isinstance(values.get("message"), str) or not isinstance(hint, str | None):
            raise InputError("error", f"`error` is {str(found)[:60]!r}, but must have a `type` and a `message`")
        made = kind.__new__(kind)
        StudioError.__init__(made, values["message"], hint=hint)
        for name in kind.details:
            value = _read(values.get(name))
            setattr(made, name, Path(str(value)) if name == "path" else value)
        return made


class UsageError(StudioError):
    """The request is invalid."""

    exit_code = 2


class InputError(UsageError):
    """The value of an input is invalid. `field` names the (first) invalid input."""

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
    """A workflow is invalid. `problems` has a message, with file and line, and a hint or None for each problem; the
    error's message lists the first 20 of them.
    """

    details = ("problems",)
    _LISTED = 20

    def __init__(self, problems: Sequence[tuple[str, str | None]]) -> None:
        self.problems = tuple(problems)
        lines = [f"{message} ({hint})" if hint else message for message, hint in self.problems[1 : self._LISTED]]
        if more := self.problems[self._LISTED :]:
            lines.append(f"and {len(more):,} more")
        super().__init__("\n".join([self.problems[0][0], *lines]), hint=self.problems[0][1])


class PluginError(StudioError):
    """A plugin cannot be imported, or one of its objects cannot be used."""


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
    """A model is not downloaded, cannot be downloaded, is damaged, or is not in a safe format."""


class MediaError(StudioError):
    """Media cannot be decoded (unknown format, truncated, too large) or encoded."""


class StoreError(StudioError):
    """The artifact store has no such artifact, or cannot be read or written."""


class FileTaken(StoreError):
    """The output file `path` already exists, and overwriting was not allowed."""

    details = ("path",)

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(f"`{path}` already exists", hint="choose another name, or overwrite it with --force")


class NotStored(StoreError, Generic[MediaT]):
    """The output `media` (a `studio.Media`), with its recipe, cannot be written to the data folder."""

    def __init__(self, media: MediaT, error: StoreError) -> None:
        self.media = media
        super().__init__(error.message, hint=error.hint)


class CheckpointError(StudioError):
    """A saved request is damaged, or its plugin, model or media no longer exist. `path` is its file."""

    details = ("path",)

    def __init__(self, path: Path, reason: str, *, hint: str | None = None) -> None:
        self.path = path
        hint = hint or "start the request again; `studio resume --drop ID` deletes the saved state"
        super().__init__(f"the saved request `{path.stem}` cannot be resumed: {reason}", hint=hint)


class GeneratorFailed(StudioError):
    """The generator raised, or returned an invalid value; the engine continues with other requests."""

    details = ("generator",)

    def __init__(self, generator: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.generator = generator


class OutOfMemory(GeneratorFailed):
    """The device ran out of memory (OOM)."""


class TimedOut(GeneratorFailed):
    """A call exceeded its timeout and was abandoned; `over` says whether it has returned since."""

    over: Callable[[], bool] = staticmethod(lambda: True)

    def __init__(
        self, generator: str, message: str, *, hint: str | None = None, over: Callable[[], bool] = lambda: True
    ) -> None:
        super().__init__(generator, message, hint=hint)
        self.over = over


class DeviceLost(StudioError):
    """The device can no longer be used by this process, or cannot be opened: no request can run on it."""


class EngineClosed(StudioError):
    """The engine was closed before the request was done."""


class Busy(StudioError):
    """Too many requests are unfinished; none of the new ones was accepted."""


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
    """At most `limit` characters of a plugin's text, with unprintable characters escaped."""
    kept = str.__getitem__(text, slice(0, limit))  # a plain str, also of a subclass that overrides everything
    return "".join(each if each.isprintable() or each == "\n" else ascii(each)[1:-1] for each in kept)


_OUT_OF_MEMORY = (
    "out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory",
    "cublas_status_alloc_failed", "cudnn_status_alloc_failed", "cusolver_status_alloc_failed",
    "unable to find a valid cudnn algorithm", "unable to find an engine", "failed to allocate",
)  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out: Python's, torch's, or a text of CUDA's libraries."""
    kind = type(error)
    if issubclass(kind, MemoryError) or any(class_name(each) == "OutOfMemoryError" for each in kind.__mro__):
        return True
    said = describe(error, 1000).lower()
    return issubclass(kind, RuntimeError) and any(words in said for words in _OUT_OF_MEMORY)


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
    except BaseException:  # formatting runs the exception's own code
        return f"{class_name(type(error))}: its traceback cannot be formatted\n"


def class_name(kind: type) -> str:
    """The name of a class, at most 100 characters of it. Never raises: a metaclass may override it."""
    name: str = vars(type)["__name__"].__get__(kind)
    return clean(name, 100)


def _one_line(error: BaseException, limit: int) -> str:
    try:
        lines = clean(str(error), 4 * limit).split()
    except BaseException:  # its own code, which may do anything
        return "(`str()` of it raises)"
    return " ".join(lines)[:limit]


def nearest(name: str, candidates: Sequence[str]) -> str | None:
    """Return the candidate most similar to `name`, or None."""
    import difflib

    found = difflib.get_close_matches(name, candidates, n=1, cutoff=0.6)
    return found[0] if found else None
