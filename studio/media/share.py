"""Copies to share: without recipe, prompt and other metadata, with the AI label; pixels, frames and samples unchanged.

What shows the content stays (colour profiles, frame durations, orientation); nothing is encoded again. Formats are
those that Studio writes. Tags of MP4, FLAC, MP3 and Ogg are written by FFmpeg, in a separate process (see `sandbox`).

Try it: ``studio share a.png``
"""

from __future__ import annotations

import io
import struct
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.errors import MediaError
from studio.media import animation, clips, pictures, png, riff, sandbox, sounds
from studio.media import label as labels
from studio.media.audio import Audio, label_chunks, label_in
from studio.media.image import Image
from studio.media.label import Label
from studio.media.video import Video

if TYPE_CHECKING:
    from studio.media.clips import Put

SUFFIXES = tuple(
    dict.fromkeys((*(each for kind in (Image, Video, Audio) for each in (kind.suffix, *kind.others)), ".jpg", ".jpeg"))
)
_PNG = (b"IHDR", b"PLTE", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"cICP", b"sBIT", b"bKGD", b"pHYs", b"acTL",
        b"fcTL", b"fdAT", b"IDAT", b"IEND")  # fmt: skip
_WEBP = (b"VP8X", b"ICCP", b"ANIM", b"ANMF", b"ALPH", b"VP8 ", b"VP8L")
_WAV = (b"fmt ", b"fact", b"data")
_WEBP_EXIF, _WEBP_XMP = 0x08, 0x04  # flags of the chunk VP8X
_LOOPS = (b"NETSCAPE2.0", b"ANIMEXTS1.0")  # GIF's extensions that say how often it is played
_APP1 = b"\xe1"  # the JPEG segment of metadata
_JPEG_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_COMMENT = b"\xfe"
_JPEG_LOOKS = {b"\xe0": (b"JFIF\0", 12), b"\xe2": (b"ICC_PROFILE\0", 1 << 16), b"\xee": (b"Adobe", 12)}
"""Application segments that change how it looks: how they begin, and how many bytes are kept, without thumbnails."""
_ORIENTATION = 0x0112


def shared(data: bytes) -> tuple[bytes, Label | None]:
    """The file to share, and its AI label, or None if it has none. Raises MediaError for a damaged file, and for one of
    a format that Studio does not write.
    """
    if png.is_png(data):
        return _png(data)
    if data[:2] == b"\xff\xd8":
        return _jpeg(data)
    if data[:4] == b"GIF8":
        return _gif(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        return _wav(data)
    if animation.is_avif(data):
        return _avif(data)
    if data[4:8] == b"ftyp" or data[:4] in (b"fLaC", b"OggS") or data[:3] == b"ID3" or data[:2] in _MP3:
        found, pieces = sandbox.run("bare", data, "the file")
        return bytes(pieces["file"]), Label(**found["label"]) if found["label"] else None
    raise MediaError(
        "the file is not in a format that Studio writes", hint=f"these can be shared: {', '.join(SUFFIXES)}"
    )


def shared_file(path: Path) -> tuple[bytes, Label | None]:
    """The same for a file. Raises MediaError also if it cannot be read."""
    from studio.files import read_limited

    try:
        return shared(read_limited(path, Video.max_file_bytes))
    except MediaError as error:
        raise MediaError(f"cannot share `{path}`: {error.message}", hint=error.hint) from error


def bare(data: bytes, put: Put) -> dict[str, Any]:
    """Put a copy of an MP4, FLAC, MP3 or Ogg file as "file": all its streams, and no metadata but the label, which is
    returned as `label`. Raises MediaError.
    """
    import av

    try:
        with av.open(io.BytesIO(data), options=dict(sounds.OPTIONS | _ANY_CODEC)) as source:
            form = next((each for each in ("mp4", "flac", "mp3", "ogg") if each in source.format.name.split(",")), "")
            if not form or not source.streams:
                raise MediaError("the file is not in a format that Studio writes")
            tags = [sounds.tag(source, name) for name in (labels.AIGC, labels.SOURCE_TYPE)]
            label = labels.of_xmp(clips.xmp_in(data)) or labels.of_tags(*tags)
            put("file", _copied(source, form, label))
    except (av.error.FFmpegError, ValueError, LookupError) as error:
        raise MediaError("the file is truncated or damaged", hint="use the complete file") from error
    return {"label": asdict(label) if label else None}


_MP3 = (b"\xff\xfb", b"\xff\xfa", b"\xff\xf3", b"\xff\xf2")
_ANY_CODEC = {
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,flac,mp3,ogg",
    "codec_whitelist": f"{clips.CODECS},{sounds.CODECS}",
}


def _copied(source: Any, form: str, label: Label | None) -> bytes:
    import av

    made, options = io.BytesIO(), {"fflags": "+bitexact"}
    if form == "mp4" and label:
        options["movflags"] = "use_metadata_tags"
    with av.open(made, "w", format=form, options=options) as target:
        chosen = [each for each in source.streams if each.type in ("video", "audio")]
        streams = {each.index: target.add_stream_from_template(each) for each in chosen}
        for each in streams.values():
            each.metadata.clear()
        if label:
            aigc = {labels.AIGC: label.aigc()} if label.aigc() else {}
            target.metadata.update(aigc if form == "mp4" else label.tags())
        for packet in source.demux(chosen):
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    return made.getvalue() + (clips.xmp_box(label) if form == "mp4" and label else b"")


def _png(data: bytes) -> tuple[bytes, Label | None]:
    kept: list[bytes] = []
    for kind, start, end in png.chunks(data):
        if kind in _PNG:
            kept.append(data[start - 8 : end + 4])
        elif kind == b"eXIf" and (turned := _orientation(data[start:end])):
            kept.append(png.chunk(b"eXIf", turned))
    label = labels.of_xmp(png.xmp(data))
    made = png.SIGNATURE + b"".join(kept)
    return png.with_text(made, {png.XMP_KEY: label.xmp()}) if label else made, label


def _jpeg(data: bytes) -> tuple[bytes, Label | None]:
    """Segments up to the first scan are kept by their kind, and then all to the end mark."""
    kept: list[bytes] = []
    label, at = None, 2
    while data[at : at + 2] != b"\xff\xda":
        if data[at : at + 2] == b"\xff\xff":  # filling
            at += 1
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        kind, body = data[at + 1 : at + 2], data[at + 4 : end]
        if data[at : at + 1] != b"\xff" or end > len(data) or end < at + 4:
            raise MediaError("the JPEG is truncated or damaged", hint="use the complete file")
        if kind == _APP1 and body.startswith(_JPEG_XMP):
            label = label or labels.of_xmp(body[len(_JPEG_XMP) :])
        elif kind == _APP1 and body.startswith(b"Exif\0\0") and (turned := _orientation(body[6:])):
            kept.append(_segment(b"Exif\0\0" + turned))
        elif (looks := _JPEG_LOOKS.get(kind)) and body.startswith(looks[0]):
            kept.append(_segment(body[: looks[1]], kind))
        elif not b"\xe0" <= kind <= b"\xef" and kind != _COMMENT:
            kept.append(data[at:end])
        at = end
    if (ends := data.find(b"\xff\xd9", at)) < 0:
        raise MediaError("the JPEG is truncated: its end mark is missing", hint="use the complete file")
    xmp = _segment(_JPEG_XMP + label.xmp().encode()) if label else b""
    return b"".join([b"\xff\xd8", xmp, *kept, data[at : ends + 2]]), label


def _segment(body: bytes, kind: bytes = _APP1) -> bytes:
    body += b"\0\0" if kind == b"\xe0" else b""  # the size of JFIF's thumbnail
    return b"\xff" + kind + struct.pack(">H", len(body) + 2) + body


def _gif(data: bytes) -> tuple[bytes, Label | None]:
    animation.check(data)
    kept = [data[:6]]
    for kind, start, end in animation.gif_blocks(data):
        extension = data[start + 1] if kind == b"!" else 0
        if kind != b"!" or extension == 0xF9 or (extension == 0xFF and data[start + 3 : start + 14] in _LOOPS):
            kept.append(data[start:end])
    label = labels.of_xmp(animation.gif_xmp(data))
    made = b"".join(kept)
    return animation.gif_with_xmp(made, label.xmp()) if label else made, label


def _webp(data: bytes) -> tuple[bytes, Label | None]:
    animation.check(data)
    found = list(riff.chunks(data))
    xmp = next((data[start:end] for name, start, end in found if name == b"XMP "), b"")
    exif = next((data[start:end] for name, start, end in found if name == b"EXIF"), b"")
    label, turned = labels.of_xmp(xmp), _orientation(exif)
    parts = [(name, data[start:end]) for name, start, end in found if name in _WEBP]
    if parts and parts[0][0] == b"VP8X":
        flags = parts[0][1][0] & ~(_WEBP_EXIF | _WEBP_XMP)
        flags |= (_WEBP_XMP if label else 0) | (_WEBP_EXIF if turned else 0)
        parts[0] = (b"VP8X", bytes([flags]) + parts[0][1][1:])
        parts += [(b"EXIF", turned)] if turned else []
        parts += [(b"XMP ", label.xmp().encode())] if label else []
    return riff.file(b"WEBP", parts), label


def _wav(data: bytes) -> tuple[bytes, Label | None]:
    if len(data) < 8 + int.from_bytes(data[4:8], "little"):
        raise MediaError("the WAV file is truncated", hint="use the complete file")
    label = label_in(data, 12)
    kept = ((name, data[start:end]) for name, start, end in riff.chunks(data) if name in _WAV)
    return riff.file(b"WAVE", kept, label_chunks(label)), label


def _avif(data: bytes) -> tuple[bytes, Label | None]:
    """AVIF names its parts by their places, so its metadata are overwritten where they are."""
    with animation.damage_as_media_error(), pictures.opened(data, ("AVIF",)) as picture:
        exif, xmp = picture.info.get("exif") or b"", pictures.xmp_in(picture)
    label = labels.of_xmp(xmp)
    emptied = bytearray(data)
    for kind, at, start, end in clips.boxes(data):
        if kind == b"uuid":  # such as a signature
            emptied[at + 4 : at + 8] = b"free"
            emptied[start:end] = bytes(end - start)
    made = _overwritten(bytes(emptied), exif.removeprefix(b"Exif\0\0"), _orientation(exif) or _EMPTY_EXIF)
    return _overwritten(made, xmp, label.xmp().encode() if label else b"", b" "), label


_EMPTY_EXIF = b"II*\0\x08\0\0\0\0\0\0\0\0\0"


def _overwritten(data: bytes, old: bytes, new: bytes, fill: bytes = b"\0") -> bytes:
    """The file with `new` in the place of `old`, filled up to its length."""
    if not old:
        return data
    if data.count(old) != 1 or len(new) > len(old):
        raise MediaError("its metadata cannot be removed", hint="save it as PNG or WebP")
    return data.replace(old, new + fill * (len(old) - len(new)))


def _orientation(exif: bytes) -> bytes:
    """EXIF data with only the orientation of the given EXIF data, as TIFF; nothing if that is upright."""
    import PIL.Image

    found = PIL.Image.Exif()
    try:
        found.load(exif)
        turn = found.get(_ORIENTATION, 1)
    except pictures.DAMAGED:
        turn = 1
    if not isinstance(turn, int) or not 2 <= turn <= 8:
        return b""
    return b"II*\0\x08\0\0\0" + struct.pack("<HHHIHHI", 1, _ORIENTATION, 3, 1, turn, 0, 0)
