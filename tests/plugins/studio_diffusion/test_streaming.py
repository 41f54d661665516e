"""The starter above its memory budget: streamed layer group by layer group, to the same picture, and said so."""

from __future__ import annotations

from pathlib import Path

import studio


def test_a_streamed_starter_draws_the_same_picture_and_says_so(tmp_path: Path) -> None:
    asked = {"prompt": "a red apple", "seed": 7, "steps": 2, "size": "64x64"}
    with studio.Studio(home=tmp_path / "whole", device="cpu", dtype="float32") as host:
        whole = host.image(**asked)
        held = host.router.engines[0].ledger.used
    with studio.Studio(home=tmp_path / "streamed", device="cpu", dtype="float32", memory="76MiB") as host:
        streamed = host.image(**asked)
        assert host.router.engines[0].ledger.used < held / 2
    assert streamed == whole
    assert whole.recipe
    assert streamed.recipe
    assert not whole.recipe.notices
    (notice,) = streamed.recipe.notices
    assert "were streamed: they exceed the memory budget" in notice
