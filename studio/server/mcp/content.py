"""Media in messages: what an agent gets of an output, and the media that it names as inputs.

An output is described in JSON, shown in a small preview with its AI label, and linked as a resource. Inputs are outputs
of the store, or data; a text never names a file.

Try it: ``studio mcp``
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from typing import Any

import mcp_types as types

from studio.api import Studio
from studio.errors import InputError
from studio.inputs import Flag, Inputs
from studio.media import Audio, Image, Media, Text, Video
from studio.server.mcp.tools import URI
from studio.server.pictures import encoded
from studio.server.uploads import decoded_base64

_ID = re.compile(r"[0-9a-f]{6,64}")
SIDE = 512  # pixels of the longer side of a preview
SOUND_BYTES = 512 << 10  # a longer sound is only linked


def described(media: Media, *, local: bool) -> dict[str, Any]:
    """The facts of an output; its path only for an agent on this machine (`local`)."""
    recipe = media.recipe
    return {
        "id": media.sha256,
        "uri": f"{URI}{media.sha256}",
        "kind": media.kind,
        "media_type": media.media_type,
        **({"path": str(media.path) if media.path else None} if local else {}),
        "generator": recipe.spec.generator if recipe else None,
        "seed": recipe.spec.seed if recipe else None,
        "notices": list(recipe.notices) if recipe else list(media.notices),
    }


def shown(media: Media, *, local: bool) -> list[types.ContentBlock]:
    """The output for an agent: its text or its facts, a preview, and a link."""
    facts = described(media, local=local)
    blocks: list[types.ContentBlock] = [types.TextContent(text=json.dumps(facts, ensure_ascii=False))]
    if isinstance(media, Text):
        blocks.insert(0, types.TextContent(text=media.text))
    elif isinstance(media, Image | Video):
        image = media if isinstance(media, Image) else Image.from_array(media.frames[0]).labelled(media.label)
        blocks.append(types.ImageContent(data=_base64(_preview(image)), mime_type="image/jpeg"))
    elif isinstance(media, Audio) and media.waveform.nbytes <= SOUND_BYTES:
        blocks.append(types.AudioContent(data=_base64(media.file_bytes()), mime_type=media.media_type))
    name = f"{media.sha256[:12]}{media.suffix}"
    return [*blocks, types.ResourceLink(uri=facts["uri"], name=name, mime_type=media.media_type)]


def resource(studio: Studio, uri: str) -> types.BlobResourceContents | types.TextResourceContents:
    """The file of an output by its URI. Raises InputError for another URI, and as `Studio.load`."""
    media = found(studio, "uri", uri)
    if isinstance(media, Text):
        return types.TextResourceContents(uri=uri, mime_type=media.media_type, text=media.text)
    return types.BlobResourceContents(uri=uri, mime_type=media.media_type, blob=_base64(media.file_bytes()))


def found(studio: Studio, name: str, what: object, *, local: bool = False) -> Media:
    """An output of the store by its id or URI; for a `local` agent the beginning of an id will do, which others could
    guess. Raises InputError, UsageError, StoreError.
    """
    key = what.removeprefix(URI) if isinstance(what, str) else ""
    if not _ID.fullmatch(key) or (len(key) < 64 and not local):
        hint = f"an id is {'6 to ' if local else ''}64 characters of 0-9 and a-f, also as {URI}ID"
        raise InputError(name, f"`{name}` is {str(what)[:60]!r}, which is not the id of an output", hint=hint)
    return studio.store.open(key)


def opened(studio: Studio, kind: type[Inputs], given: Mapping[str, Any], *, local: bool) -> dict[str, Any]:
    """The inputs with the media that they name. Raises InputError, MediaError, UsageError, StoreError."""
    flags = {flag.name: flag for flag in kind.flags()}
    return {
        name: _opened(studio, flags[name], value, local) if name in flags and flags[name].type == "media" else value
        for name, value in given.items()
    }


def _opened(studio: Studio, flag: Flag, value: Any, local: bool) -> Any:
    if isinstance(value, list):
        return [_opened(studio, flag, each, local) for each in value]
    if value is None or flag.media is None or (flag.media is Text and not str(value).startswith(URI)):
        return value
    if not isinstance(value, str):
        raise InputError(flag.name, f"`{flag.name}` must be an id or a data: URL, not {type(value).__name__}")
    if value[:5].lower() != "data:":
        return found(studio, flag.name, value, local=local)
    data = decoded_base64(flag.name, value)
    if flag.media is Image:
        return Image.decode_isolated(data)
    made: Media = flag.media.decode(data)
    return made.attach(None, None)


def _preview(image: Image) -> bytes:
    """A small JPEG of a picture, with its AI label."""
    small = image.pil
    small.thumbnail((SIDE, SIDE))
    return encoded(Image(small).labelled(image.label), "JPEG", 85)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
