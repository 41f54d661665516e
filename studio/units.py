"""Formatting and parsing byte sizes: ``42.0 MiB``, ``2GiB``.

Try it: ``python -c "from studio.units import show_bytes; print(show_bytes(1 << 30))"``
"""

from __future__ import annotations

import re

from studio.errors import UsageError

_UNITS = {"": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "kb": 10**3, "mb": 10**6, "gb": 10**9}


def show_bytes(size: float) -> str:
    """``42.0 MiB``."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def parse_bytes(text: str) -> int:
    """Parse ``2GiB``, ``500 MB`` or a number of bytes. Raises UsageError."""
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*([a-zA-Z]*)", text.strip())
    if not match or match[2].lower() not in _UNITS:
        raise UsageError(f"the memory is `{text[:40]}`; it must be a number with a unit, such as `2GiB` or `500MB`")
    size = int(float(match[1]) * _UNITS[match[2].lower()])
    if size < 1:
        raise UsageError(f"the memory is `{text[:40]}`; it must be at least one byte")
    return size
