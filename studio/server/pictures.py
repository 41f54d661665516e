"""Pictures in the formats that clients ask for.

Try it: ``encoded(studio.Image.open("a.png"), "JPEG", 90)[:2]`` is ``b"\\xff\\xd8"``
"""

from __future__ import annotations

import io

from studio.media import Image

FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}
"""Pillow's names of the formats, by the names that clients use."""


def encoded(image: Image, form: str, quality: int = 100) -> bytes:
    """The file of a picture, with its AI label. PNG has its recipe; JPEG and WebP have a quality from 0 to 100."""
    if form == "PNG":
        return image.file_bytes()
    buffer = io.BytesIO()
    pil = image.pil.convert("RGB") if form == "JPEG" else image.pil
    label = {"xmp": image.label.xmp().encode()} if image.label else {}
    pil.save(buffer, form, quality=max(1, quality), **label)
    return buffer.getvalue()
