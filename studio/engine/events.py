"""The events of a request: progress, text deltas, previews and the result, with a JSON form.

Their order is: Queued; Loading, if the model is not loaded yet; Started; Notice, Progress, Delta and Preview;
and exactly one last event: Finished, Failed or CancelledEvent (``event.last``). The events of a ticket are
numbered from 1.

In JSON an event is an object with its `type`, its `number` and its fields. Media are ``{"sha256", "media_type"}``.
Media that are not in the store, such as previews, also have their file as base64 in `data`, if it takes at most 1 MiB;
the size of a larger preview image is halved until it fits.

Try it: ``for event in studio.Studio().stream("image", prompt="a red apple"): print(event.to_json())``
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Self

from studio.errors import InputError, MediaError, StudioError, UnknownName, UsageError
from studio.media import Audio, Embedding, Image, Media, Text, Video
from studio.recipe import MediaRef

if TYPE_CHECKING:
    from pydantic import TypeAdapter

MAX_INLINE_BYTES = 1 << 20
MAX_EVENT_BYTES = 8 << 20
_MEDIA: dict[str, type[Media]] = {each.media_type: each for each in (Text, Image, Video, Audio, Embedding)}

Fetch = Callable[[MediaRef], Media]


@dataclass(frozen=True)
class Event:
    """Base class of the events.

    `number` counts the events of the request, from 1; it is 0 until a ticket has the event. `last` is true for the last
    event of a request, and `outcome` then says how the request ended.
    """

    type: ClassVar[str]
    last: ClassVar[bool] = False
    outcome: ClassVar[str] = ""
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "arbitrary_types_allowed": True}

    number: int = field(default=0, init=False, compare=False)

    def numbered(self, number: int) -> Self:
        """The event itself, with that number."""
        vars(self)["number"] = number  # it is frozen for all others
        return self

    def to_json(self) -> str:
        """The event as JSON text in one line."""
        values: dict[str, Any] = {"type": self.type}
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, Media):
                value = _media_as_json(value, preview=isinstance(self, Preview))
            values[each.name] = value.to_json() if isinstance(value, StudioError) else value
        text = json.dumps(values, ensure_ascii=False, allow_nan=False)
        return text.encode("utf-8", "replace").decode()  # a notice may have half a character, which no UTF-8 can hold

    @staticmethod
    def from_json(text: str | bytes, fetch: Fetch | None = None) -> Event:
        """Read an event from untrusted JSON of at most 8 MiB.

        `fetch` returns media by hash, for example ``lambda ref: host.store.open(ref.sha256)``. Raises UsageError,
        UnknownName or InputError, in one line; MediaError for damaged media, and what `fetch` raises.
        """
        values = _parse(text)
        kinds = {kind.type: kind for kind in _KINDS}
        kind = kinds.get(str(name := values.pop("type", "")))
        if kind is None:
            raise UnknownName("type of event", str(name)[:60], kinds)
        if "media" in values:
            values["media"] = _media_from_json(values["media"], fetch)
        if "error" in values:
            values["error"] = StudioError.from_json(values["error"])
        number = values.pop("number", 0)
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise InputError("number", f"`number` is {str(number)[:60]!r}, but must be a whole number from 0")
        return _checked(kind, values).numbered(number)


@dataclass(frozen=True)
class Queued(Event):
    """The request was accepted while `ahead` other requests were unfinished."""

    type: ClassVar[str] = "queued"

    ahead: int = 0


@dataclass(frozen=True)
class Loading(Event):
    """The model of `generator` is being loaded on `device`."""

    type: ClassVar[str] = "loading"

    generator: str
    device: str


@dataclass(frozen=True)
class Started(Event):
    """The request has started; it has `steps` steps."""

    type: ClassVar[str] = "started"

    steps: int


@dataclass(frozen=True)
class Notice(Event):
    """A message for the user, for example that a prompt was truncated."""

    type: ClassVar[str] = "notice"

    text: str


@dataclass(frozen=True)
class Progress(Event):
    """`position` of `steps` steps are done after `elapsed_s` seconds; the rest will take about `eta_s` seconds."""

    type: ClassVar[str] = "progress"

    position: int
    steps: int
    elapsed_s: float
    eta_s: float


@dataclass(frozen=True)
class Delta(Event):
    """The next piece of generated text: `text` follows the first `start` characters.

    The joined deltas of a request are its output; emitted text never changes. Only requests whose JobSpec has `stream`
    have them.
    """

    type: ClassVar[str] = "delta"

    start: int
    text: str


@dataclass(frozen=True)
class Preview(Event):
    """A preview after `position` steps."""

    type: ClassVar[str] = "preview"

    position: int
    media: Media


@dataclass(frozen=True)
class Finished(Event):
    """The request has finished; `media` is the output, with its recipe and, if there is a store, its path."""

    type: ClassVar[str] = "finished"
    last: ClassVar[bool] = True
    outcome: ClassVar[str] = "finished"

    media: Media


@dataclass(frozen=True)
class Failed(Event):
    """The request has failed with `error`; other requests are not affected."""

    type: ClassVar[str] = "failed"
    last: ClassVar[bool] = True
    outcome: ClassVar[str] = "failed"

    error: StudioError


@dataclass(frozen=True)
class CancelledEvent(Event):
    """The request was cancelled, and its state is released."""

    type: ClassVar[str] = "cancelled"
    last: ClassVar[bool] = True
    outcome: ClassVar[str] = "cancelled"


_KINDS: tuple[type[Event], ...] = (
    Queued, Loading, Started, Notice, Progress, Delta, Preview, Finished, Failed, CancelledEvent,
)  # fmt: skip


def _parse(text: str | bytes) -> dict[str, Any]:
    size = len(text.encode("utf-8", "surrogatepass")) if isinstance(text, str) else len(text)
    if size > MAX_EVENT_BYTES:
        raise UsageError(f"the event has {size:,} bytes; at most {MAX_EVENT_BYTES:,} are read")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UsageError("the event is not a JSON object", hint='such as {"type": "started", "number": 3, "steps": 20}')
    return found


@cache
def _adapters() -> dict[str, TypeAdapter[Event]]:
    from pydantic import TypeAdapter

    return {kind.type: TypeAdapter(kind) for kind in _KINDS}


def _checked(kind: type[Event], values: dict[str, Any]) -> Event:
    from pydantic import ValidationError

    try:
        return _adapters()[kind.type].validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))[:80]
        if first["type"] == "unexpected_keyword_argument":
            raise UnknownName(f"field of the event `{kind.type}`", name, [each.name for each in fields(kind)]) from None
        if first["type"] == "missing":
            raise InputError(name, f"`{name}` is missing from the event `{kind.type}`") from None
        raise InputError(name, f"`{name}` is {str(first['input'])[:60]!r}; {first['msg'][:200]}") from None


def _media_as_json(media: Media, *, preview: bool) -> dict[str, str]:
    """Hash and type, and the file itself if it is small and not in the store."""
    if media.path is not None and not preview:
        return media.ref.model_dump()
    data = media.data
    while preview and len(data) > MAX_INLINE_BYTES and isinstance(media, Image):
        media = Image(media.pil.reduce(2))
        data = media.data
    found: dict[str, str] = media.ref.model_dump()
    if len(data) <= MAX_INLINE_BYTES:
        found["data"] = base64.b64encode(data).decode()
    return found


def _media_from_json(found: Any, fetch: Fetch | None) -> Media:
    from pydantic import ValidationError

    rest = dict(found) if isinstance(found, dict) else {}
    data = rest.pop("data", None)
    try:
        ref = MediaRef.model_validate(rest)
    except ValidationError:
        raise InputError("media", f"`media` is {str(found)[:60]!r}, but must have `sha256` and `media_type`") from None
    if data is None and fetch is not None:
        return fetch(ref)
    if data is None:
        raise InputError("media", f"the media {ref.sha256[:12]} are given only by their hash", hint="give `fetch`")
    if ref.media_type not in _MEDIA:
        raise UnknownName("media type", ref.media_type, _MEDIA)
    try:
        media = _MEDIA[ref.media_type].decode(base64.b64decode(data, validate=True))
    except (binascii.Error, TypeError, ValueError):
        raise InputError("media", "the `data` of `media` is not base64") from None
    if media.sha256 != ref.sha256:
        raise MediaError(f"the media have the hash {media.sha256[:12]}, but the event says {ref.sha256[:12]}")
    return media
