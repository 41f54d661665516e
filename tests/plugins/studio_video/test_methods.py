"""`Studio.video`, on the starter."""

from __future__ import annotations

import studio


def test_a_clip_is_made() -> None:
    with studio.Studio(device="cpu") as host:
        clip = host.video("a red apple bouncing", seed=3, steps=1, frames=3, size="64x64", client="someone")
        assert isinstance(clip, studio.Video)
        assert clip.recipe is not None
        assert (clip.recipe.spec.generator, clip.recipe.spec.seed) == ("video", 3)
