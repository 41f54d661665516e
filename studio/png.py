"""The former name of `studio.media.png`, until 0.2."""

import warnings

from studio.media.png import is_png, read_text, with_text

__all__ = ["is_png", "read_text", "with_text"]

warnings.warn("`studio.png` is `studio.media.png` now; this name goes in 0.2", DeprecationWarning, stacklevel=2)
