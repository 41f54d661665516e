"""An older name for videos and sound, which are in `studio.media`."""

from studio.deprecation import deprecated
from studio.media import Audio, Video

__all__ = ["Audio", "Video"]

deprecated("the module `studio.timed_media`", "`studio.media`", gone_in="0.2")
