"""An older name for the texts in PNG files, which are in `studio.media.png`."""

from studio.deprecation import deprecated
from studio.media.png import is_png, read_text, with_text

__all__ = ["is_png", "read_text", "with_text"]

deprecated("the module `studio.png`", "`studio.media.png`", gone_in="0.2")
