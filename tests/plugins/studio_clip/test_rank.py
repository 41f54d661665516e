"""The generator `clip-rank`: the cosines that CLIP gives, some pictures a step, on the model of `embed`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image

import studio
from studio.engine import Progress
from studio.media.pictures import square_on_white
from studio_clip import model
from studio_clip.family import PER_STEP


def test_many_pictures_are_scored_step_by_step_on_one_model(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [studio.Image.from_array(rng.integers(0, 256, (20, 30, 3), np.uint8)) for _ in range(2 * PER_STEP + 3)]
    clip = model.load()
    pictures = clip.encode_pixels(np.stack([square_on_white(each.pil, clip.size) for each in images]))
    wanted = (pictures @ clip.encode_text(["noise"]).T)[:, 0].numpy()
    with studio.Studio(home=tmp_path, device="cpu") as host:
        host.generate("embed", text="noise")
        held = host.router.engines[0].ledger.used
        ticket = host.submit("clip-rank", text="noise", images=images)
        made = ticket.result()
        assert isinstance(made, studio.Embedding)
        np.testing.assert_allclose(made.vector, wanted, atol=1e-5)
        assert [event.position for event in ticket.events() if isinstance(event, Progress)] == [1, 2, 3]
        assert host.router.engines[0].ledger.used == held, "`embed` and `clip-rank` have one model"


def test_pictures_of_unlike_sizes(tmp_path: Path) -> None:
    images = [studio.Image(PIL.Image.new("RGB", size)) for size in ((5, 300), (40, 40))]
    with studio.Studio(home=tmp_path, device="cpu") as host:
        made = host.generate("clip-rank", text="black", images=images)
    assert isinstance(made, studio.Embedding)
    assert made.vector.shape == (2,)
