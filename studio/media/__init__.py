"""Media: the inputs and outputs of generators. Each kind has a module."""

from studio.media.audio import Audio
from studio.media.base import MAX_FILE_BYTES, Media, Text
from studio.media.embedding import Embedding
from studio.media.image import Image, recipe_in
from studio.media.label import Label
from studio.media.pictures import MAX_PIXELS
from studio.media.video import Video

__all__ = [
    "MAX_FILE_BYTES",
    "MAX_PIXELS",
    "Audio",
    "Embedding",
    "Image",
    "Label",
    "Media",
    "Text",
    "Video",
    "recipe_in",
]
