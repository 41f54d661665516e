"""The generator on a tiny net: the contract, what is given is kept, packing, and its refusals."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

import studio
from studio.diffusion.samplers import noise_levels
from studio.engine import Engine, Request
from studio.engine.events import Notice, Preview
from studio.errors import InputError, WeightsError
from studio.recipe import PluginRef
from studio.weights.loading import Streaming, hosting
from studio_video.starter import MEMORY, OVERLAP, UNTRAINED, WINDOW, levels, windows
from studio_video.temporal_filter import filtered
from studio_video.video import VideoGenerator

PLUGIN = PluginRef(name="test", version="1")
SMALL = {"prompt": "a red apple bouncing", "steps": 3, "frames": 3, "size": "64x64"}


def picture(colour: tuple[int, int, int], size: tuple[int, int] = (64, 64)) -> studio.Image:
    return studio.Image(PIL.Image.new("RGB", size, colour))


def make(generator: VideoGenerator, seed: int = 0, **inputs: Any) -> studio.Video:
    """A clip by hand, in float32."""
    import torch

    parsed = generator.Inputs.parse(SMALL | inputs)
    with torch.inference_mode():
        model = generator.load(studio.ModelRef(), "cpu", "float32")
        state = generator.start(model, parsed, studio.Rng(seed))
        while not state.done:
            (state,) = generator.step(model, [state])
        return generator.finish(model, state)


@pytest.fixture(scope="module")
def generator(tiny_video: Path) -> VideoGenerator:
    return VideoGenerator(tiny_video)


def test_the_first_and_the_last_frame_are_kept(generator: VideoGenerator) -> None:
    red, blue = (200, 10, 20), (10, 30, 200)
    video = make(generator, frames=5, image=picture(red), to=picture(blue))
    assert video.frames.shape == (5, 64, 64, 3)
    assert (video.frames[0] == red).all()
    assert (video.frames[-1] == blue).all()
    assert not (video.frames[1:-1] == red).all((1, 2, 3)).any()
    assert (make(generator, frames=2, image=picture(red)).frames[0] == red).all()


def test_a_streamed_model_makes_the_same_clip(generator: VideoGenerator) -> None:
    whole = make(generator, seed=1)
    with hosting(None, Streaming(1 << 20)):
        assert make(generator, seed=1) == whole


@pytest.mark.parametrize("more", [{}, {"loop": True}, {"to": picture((10, 30, 200))}])
def test_what_is_given_takes_no_part_in_the_filter(generator: VideoGenerator, more: dict[str, Any]) -> None:
    import torch

    parsed = generator.Inputs.parse(SMALL | {"frames": 5, "image": picture((200, 10, 20))} | more)
    with torch.inference_mode():
        model = generator.load(studio.ModelRef(), "cpu", "float32")
        state = generator.start(model, parsed, studio.Rng(0))
        while not state.done:
            (state,) = generator.step(model, [state])
        made = filtered(model.decode(state.x[~state.given][: 4 - ("to" in more)]))
        assert np.array_equal(generator.finish(model, state).frames[1 : 1 + len(made)], made.numpy())


def test_a_clip_is_gone_on_with(generator: VideoGenerator) -> None:
    old = studio.Video(np.random.default_rng(0).integers(0, 255, (MEMORY + 2, 64, 64, 3), np.uint8), 8)
    video = make(generator, extend=old, frames=3)
    assert video.fps == 8
    facts = generator.facts(None, generator.Inputs.parse(SMALL | {"extend": old, "frames": 1}))  # type: ignore[arg-type]
    assert facts["noise_schedule"] == {"kind": "rectified flow", "shift": 2.0, "steps": 3, "steadying": 1}
    assert np.array_equal(video.frames[: len(old.frames)], old.frames)
    assert len(video.frames) == len(old.frames) + 3


def test_a_loop_ends_where_it_begins(generator: VideoGenerator) -> None:
    import torch

    parsed = generator.Inputs.parse(SMALL | {"loop": True, "frames": 4})
    with torch.inference_mode():
        model = generator.load(studio.ModelRef(), "cpu", "float32")
        state = generator.start(model, parsed, studio.Rng(0))
        while not state.done:
            (state,) = generator.step(model, [state])
        assert torch.equal(state.x[0], state.x[-1])
        video = generator.finish(model, state)
        decoded = model.decode(state.x[:-1])
    assert np.array_equal(video.frames, filtered(decoded, loop=True).numpy())
    assert not np.array_equal(video.frames, filtered(decoded).numpy())


def test_clips_of_unlike_shapes_share_a_step(generator: VideoGenerator) -> None:
    import torch

    asked = [{"frames": 3, "guidance": 1.0}, {"frames": 2, "size": "64x96"}, {"frames": 3, "image": picture((9, 9, 9))}]
    with torch.inference_mode():
        model = generator.load(studio.ModelRef(), "cpu", "float32")
        states = [
            generator.start(model, generator.Inputs.parse(SMALL | each), studio.Rng(seed))
            for seed, each in enumerate(asked)
        ]
        assert len({generator.batch_key(state) for state in states}) == 1
        for together, state in zip(generator.step(model, states), states, strict=True):
            (alone,) = generator.step(model, [state])
            torch.testing.assert_close(together.x, alone.x, rtol=1e-4, atol=1e-4)


def test_a_clip_ends_as_a_mean_of_what_is_seen_through_fresh_noise(generator: VideoGenerator) -> None:
    import torch

    from studio_video.latent import predict_velocities
    from studio_video.packing import AttentionPattern, VideoSample

    parsed = generator.Inputs.parse(SMALL | {"steps": 9, "image": picture((200, 10, 20))})
    with torch.inference_mode():
        model = generator.load(studio.ModelRef(), "cpu", "float32")
        first = state = generator.start(model, parsed, studio.Rng(0))
        while state.position < 6:
            (state,) = generator.step(model, [state])
        seen, still = state.x0_before, first.given[:, None, None, None]
        for turn, level in enumerate((0.75, 0.525, 0.3)):
            e = torch.randn(first.x.shape, generator=studio.Rng(0).fork(5 + turn).torch)
            x = torch.where(still, first.x, (1 - level) * seen + level * e)
            at = torch.where(first.given, 0.0, level)
            (v,) = predict_velocities(model.net, [VideoSample(x, first.times, at, first.text)], AttentionPattern())
            seen = seen + (torch.where(still, x, x - level * v) - seen) * (1.0, 2 / 3, 1 / 2)[turn]
        while not state.done:
            (state,) = generator.step(model, [state])
    torch.testing.assert_close(state.x, seen, rtol=1e-4, atol=1e-4)
    assert torch.equal(state.x[0], first.x[0]), "what is given stays as it was"


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 8, 20, 1000])
def test_a_third_of_a_clips_steps_steady_it_and_none_of_a_pictures(steps: int) -> None:
    assert levels(steps, 1) == noise_levels(steps)
    found = levels(steps, 16)
    assert len(found) == steps + 1
    assert found[: steps - steps // 3] == noise_levels(steps, 2.0)[: steps - steps // 3]
    assert found[-1] == 0
    assert steps < 3 or found[-2] == pytest.approx(0.3)


@pytest.mark.parametrize("frames", [1, WINDOW, WINDOW + 1, 2 * WINDOW, 500, 1024])
def test_windows_cover_a_clip_and_overlap(frames: int) -> None:
    found = windows(frames)
    assert found[0][0] == 0
    assert found[-1][1] == frames
    assert all(b - a <= WINDOW for a, b in found)
    for (_, end), (start, _) in pairwise(found):
        assert end - start >= min(OVERLAP, frames)


@pytest.mark.parametrize("bounds", [((0, 5),), ((0, 4), (1, 5)), ((0, 3), (1, 4), (2, 5))])
def test_what_overlapping_windows_say_is_joined_by_weight(bounds: tuple[tuple[int, int], ...]) -> None:
    import torch

    from studio_video.denoising import merge_windows

    said = torch.randn(5, 2, 4, 4)
    torch.testing.assert_close(merge_windows([bounds], [said[a:b] for a, b in bounds], [1]), said)
    parts = [torch.full((b - a, 2, 4, 4), float(i)) for i, (a, b) in enumerate(bounds)]
    mixed = merge_windows([bounds], parts, [1])[:, 0, 0, 0]
    assert mixed.tolist() == sorted(mixed.tolist()), "one goes over into the next"
    assert mixed[0] == 0
    assert mixed[-1] == len(bounds) - 1


@pytest.mark.parametrize(("attention", "said"), [("full", ()), ("window", ()), ("factorised", (UNTRAINED,))])
def test_attention_that_no_starter_has_learnt_is_said(
    generator: VideoGenerator, attention: str, said: tuple[str, ...]
) -> None:
    import torch

    with torch.inference_mode():
        model = generator.load(studio.ModelRef(), "cpu", "float32")
        state = generator.start(model, generator.Inputs.parse(SMALL | {"attention": attention}), studio.Rng(0))
    assert state.notices == said


@pytest.mark.parametrize("way", ["letterbox", "crop"])
def test_another_aspect_ratio_is_said(generator: VideoGenerator, way: str) -> None:
    import torch

    parsed = generator.Inputs.parse(SMALL | {"image": picture((200, 0, 0), (128, 64)), "fit": way})
    with torch.inference_mode():
        state = generator.start(generator.load(studio.ModelRef(), "cpu", "float32"), parsed, studio.Rng(0))
    assert "`image` is 128x64, the video 64x64" in state.notices[0]
    corner = state.before[0, 0, 0].tolist()
    assert corner == ([255, 255, 255] if way == "letterbox" else [200, 0, 0])


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"frames": 0}, "`frames` is 0, but must be a whole number from 1 to 1024"),
        ({"frames": -1}, "`frames` is -1"),
        (
            {"frames": 100_000, "size": "128x128"},
            "`frames` is 100000, but must be from 1 to 1024; .* 128x128 would need 4.6 GiB",
        ),
        ({"frames": "100000", "size": "128x128"}, "128x128 would need 4.6 GiB"),  # as the command line has it
        ({"size": "65x64"}, "a multiple of 16 from 64 to 2048"),
        ({"prompt": "  "}, "describe what to show"),
        ({"image": picture((0, 0, 0)), "frames": 1}, "it must be larger"),
        ({"to": picture((0, 0, 0)), "loop": True}, "`to` and `loop` exclude each other"),
        ({"fps": 0}, "`fps` is 0, but must be a finite number from 1 to 60"),
    ],
)
def test_bad_inputs_are_refused(inputs: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        VideoGenerator.Inputs.parse(SMALL | inputs)


def test_a_folder_without_a_model_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is not a video model") as refused:
        VideoGenerator(tmp_path).weights(studio.ModelRef())
    assert "studio train video" in (refused.value.hint or "")


@pytest.mark.parametrize("suffix", [".mp4", ".webp", ".gif", ".png"])
def test_a_made_clip_is_saved_in_every_format_with_its_recipe(
    generator: VideoGenerator, tmp_path: Path, suffix: str
) -> None:
    with Engine("cpu", "float32") as engine:
        asked = Request.of(generator, generator.Inputs.parse(SMALL | {"frames": 2, "steps": 1}), 1, PLUGIN)
        (made,) = (ticket.result(500) for ticket in engine.submit_many([asked]))
    again = studio.Video.open(made.save(tmp_path / f"a{suffix}"))
    assert len(again.frames) == 2
    assert again.recipe is not None
    assert again.recipe.spec.inputs["prompt"] == SMALL["prompt"]


@pytest.mark.slow
def test_a_picture_is_drawn_and_set_in_motion(tmp_path: Path) -> None:
    """The workflow `animate` on the starters: what is to grow grows. Written in two formats, and made again."""
    flow = Path(__file__).parents[3] / "pipelines" / "animate.yaml"
    with studio.Studio(home=tmp_path / "home", device="cpu") as host:
        made = host.run(flow, prompt="a cat", motion="growing", frames=5, steps=8)
        assert not made.failed
        clip, drawn = made["clip"], made["picture"]
        assert clip.recipe.spec.inputs["image"]["sha256"] == drawn.sha256
        seen = (clip.frames.min(-1) < 235).sum((1, 2))  # pixels of the thing in each frame
        assert seen[4] > 1.1 * seen[1], "the first frame is the picture, which fills it"
        for name in ("cat.mp4", "cat.webp"):
            assert clip.save(tmp_path / name).exists()
            assert host.load(tmp_path / name).recipe.spec.generator == "video"
        assert host.replay(clip.sha256).identical


def test_a_preview_is_a_frame(generator: VideoGenerator) -> None:
    request = Request.of(generator, generator.Inputs.parse(SMALL), 0, PLUGIN, preview_every=1)
    with Engine("cpu", "float32") as engine:
        events = list(engine.submit(request).events())
    previews = [event.media for event in events if isinstance(event, Preview)]
    assert [type(each) for each in previews] == [studio.Image] * len(previews)
    assert previews[0].samples().shape == (64, 64, 3)
    assert not [event for event in events if isinstance(event, Notice)]
