"""The net: packed clips are what they are alone, windows look where they say, frames are told their own noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from studio.attention import Blocks, attend
from studio.attention.current import DispatchSettings, use_dispatch
from studio.errors import UsageError
from studio_video.model import VideoConfig, VideoTransformer, pack
from studio_video.packing import PATCH, AttentionPattern, VideoSample, patchify, unpatchify
from studio_video.product import Product

SHAPE = VideoConfig(width=32, depth=2, head_dim=16, mlp=32, channels=3, text=12)
SIDES = st.integers(1, 4).map(lambda n: n * PATCH)
CLIPS = st.lists(st.tuples(st.integers(1, 4), SIDES, SIDES, st.integers(1, 5)), min_size=1, max_size=4)


def net(seed: int = 0) -> VideoTransformer:
    torch.manual_seed(seed)
    made = VideoTransformer(SHAPE).eval()
    for weight in made.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    return made


def clip(frames: int, height: int, width: int, words: int, seed: int = 0) -> VideoSample:
    rng = torch.Generator().manual_seed(seed)
    return VideoSample(
        torch.randn(frames, 3, height, width, generator=rng),
        torch.rand(frames, generator=rng).sort().values,
        torch.rand(frames, generator=rng),
        torch.randn(words, 12, generator=rng),
    )


def say(
    model: VideoTransformer, clips: list[VideoSample], pattern: AttentionPattern | None = None
) -> list[torch.Tensor]:
    packed = pack(clips, SHAPE)
    with torch.no_grad():
        return packed.unpack(model(packed, pattern or AttentionPattern()))


@given(t=st.integers(1, 3), h=SIDES, w=SIDES)
def test_patches_come_back(t: int, h: int, w: int) -> None:
    x = torch.arange(t * 3 * h * w, dtype=torch.float32).reshape(t, 3, h, w)
    patches = patchify(x)
    assert patches.shape == (t * h * w // PATCH**2, 3 * PATCH**2)
    assert torch.equal(patches[0].reshape(3, PATCH, PATCH), x[0, :, :PATCH, :PATCH])
    assert torch.equal(unpatchify(patches, (t, h // PATCH, w // PATCH)), x)


@settings(max_examples=12, deadline=None)
@given(shapes=CLIPS, kind=st.sampled_from(["full", "window", "factorised"]))
def test_packed_clips_are_what_they_are_alone(shapes: list[Any], kind: str) -> None:
    model, pattern = net(), AttentionPattern(kind, window=(3, 2, 2), tile=(1, 2, 2), run=1, runs=2)
    clips = [clip(*shape, seed=index) for index, shape in enumerate(shapes)]
    for one, together in zip(clips, say(model, clips, pattern), strict=True):
        (alone,) = say(model, [one], pattern)
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_a_frame_is_told_its_own_noise_level() -> None:
    model, one = net(), clip(3, 4, 4, 2)
    (before,) = say(model, [one])
    levels = one.levels.clone()
    levels[1] = 0
    (after,) = say(model, [VideoSample(one.x, one.times, levels, one.text)])
    change = (after - before).abs().amax((1, 2, 3))
    assert change.argmax() == 1
    assert change[1] > 0.01


def test_windows_that_see_all_are_full_attention() -> None:
    model, one = net(), clip(4, 8, 8, 3)
    wide = AttentionPattern("window", window=(8, 8, 8), tile=(1, 2, 2))
    torch.testing.assert_close(say(model, [one], wide)[0], say(model, [one])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("pattern", "reached"),
    [
        (AttentionPattern(), range(9)),
        (AttentionPattern("factorised"), range(9)),
        (AttentionPattern("window", window=(1, 2, 2), tile=(1, 2, 2), run=1, runs=1), [8]),
        (AttentionPattern("window", window=(1, 2, 2), tile=(1, 2, 2), run=1, runs=3), [2, 5, 8]),
        (AttentionPattern("window", window=(1, 2, 2), tile=(1, 2, 2), run=2, runs=3), [0, 3, 4, 7, 8]),
        (AttentionPattern("window", window=(3, 2, 2), tile=(1, 2, 2), run=1, runs=1), [7, 8]),
    ],
)
def test_what_reaches_whom(pattern: AttentionPattern, reached: Sequence[int]) -> None:
    """The last frame is changed. The net's first layer sees what is near, the second, runs that begin a frame early."""
    model, one = net(), clip(9, 4, 4, 3)
    changed = one.x.clone()
    changed[-1] += 1
    (before,), (after,) = (
        say(model, [VideoSample(x, one.times, one.levels, one.text)], pattern) for x in (one.x, changed)
    )
    assert ((after - before).abs().amax((1, 2, 3)) > 1e-6).nonzero().flatten().tolist() == list(reached)


@given(frames=st.integers(1, 64), run=st.integers(1, 8), runs=st.integers(1, 6), shift=st.integers(0, 8))
def test_runs_cover_the_clip_and_part_no_neighbours_for_good(frames: int, run: int, runs: int, shift: int) -> None:
    pattern = AttentionPattern("window", run=run, runs=runs)
    group = pattern.frame_groups(frames, shift)
    sizes = group.bincount()
    assert sizes.max() <= run * (runs + 1)
    assert frames > run * runs or len(sizes) == 1
    together = [pattern.frame_groups(frames, shift + more).diff() == 0 for more in range(run)]
    assert run == 1 or torch.stack(together).any(0).all()


def test_no_neighbours_are_parted_in_all_layers_of_the_starter() -> None:
    together = [
        AttentionPattern().frame_groups(64, layer).diff() == 0 for layer in range(1, VideoConfig().depth, 2)
    ]  # those whose turn it is
    assert not torch.stack(together).all(0).all()
    assert torch.stack(together).any(0).all()


def test_a_new_net_says_nothing_and_its_blocks_change_nothing() -> None:
    (said,) = say(VideoTransformer(SHAPE), [clip(2, 4, 4, 2)])
    assert not said.any()


def test_the_starter_has_as_many_parameters_as_the_docs_say() -> None:
    with torch.device("meta"):
        count = sum(p.numel() for p in VideoTransformer(VideoConfig()).parameters())
    assert round(count / 1e6, 1) == 8.9


ROWS = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 5)), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None)
@given(rows=ROWS, seed=st.integers(0, 9))
def test_product_is_attention_forward_and_back(rows: list[tuple[int, int]], seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    queries, keys = (sum(each) for each in zip(*rows, strict=True))
    q, k, v = (torch.randn(1, n, 2, 8, generator=rng).requires_grad_() for n in (queries, keys, keys))
    bounds = [torch.tensor([0, *each]).cumsum(0) for each in zip(*rows, strict=True)]
    made = []
    with use_dispatch(DispatchSettings([Product()])):
        for name in ("product", "reference"):
            out = attend(q, k, v, bias=Blocks(*bounds), backend=name)
            made.append([out, *torch.autograd.grad(out.square().sum(), (q, k, v))])
    for ours, slow in zip(*made, strict=True):
        torch.testing.assert_close(ours, slow, rtol=1e-4, atol=1e-5)


def test_product_says_what_it_refuses() -> None:
    q, k = torch.randn(1, 4, 4, 8), torch.randn(1, 4, 2, 8)
    with use_dispatch(DispatchSettings([Product()])), pytest.raises(UsageError, match="grouped-query attention"):
        attend(q, k, k, backend="product")
