# The built-in plugins' methods of `Studio`, for editors and type checkers. At run time `methods.py` imports no plugin.

from collections.abc import Callable
from typing import Any

import studio_clip.methods as _clip
import studio_clip.search as _search
import studio_diffusion.methods as _diffusion
import studio_gpt.methods as _gpt
import studio_video.methods as _video
from studio.extensions import Method
from studio.plugins import Plugins

class Methods:
    plugins: Plugins

    image = _diffusion.image
    images = _diffusion.images
    video = _video.video
    text = _gpt.text
    chat = _gpt.chat
    explain = _gpt.explain
    embed = _clip.embed
    rank = _clip.rank
    label = _clip.label
    search = _search.search

def load(method: Method) -> Callable[..., Any]: ...
