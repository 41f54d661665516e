"""The plugin's method of `Studio`: `video`.

Try it: ``studio.Studio().video("a red apple falls").save("apple.mp4")``
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from studio.media import Video

if TYPE_CHECKING:
    from studio.api import Studio


def video(studio: Studio, prompt: str, *, seed: int | None = None, **inputs: Any) -> Video:
    """Generate a short video with the generator `video`. `inputs` are as in `Studio.submit`; raises like it."""
    media = studio.generate("video", seed=seed, prompt=prompt, **inputs)
    assert isinstance(media, Video)
    return media
