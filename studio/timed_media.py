"""The former name of videos and sound in `studio.media`, until 0.2."""

import warnings

from studio.media import Audio, Video

__all__ = ["Audio", "Video"]

warnings.warn("`studio.timed_media` is `studio.media` now; this name goes in 0.2", DeprecationWarning, stacklevel=2)
