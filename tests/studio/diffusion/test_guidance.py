"""Classifier-free guidance against its formula, row by row."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from studio.diffusion.guidance import classifier_free_guidance


def outputs(rows: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, 2, 3, 3, generator=torch.Generator().manual_seed(seed))


@given(rows=st.integers(1, 4), guided=st.integers(0, 4), seed=st.integers(0, 99))
def test_only_the_first_rows_are_guided(rows: int, guided: int, seed: int) -> None:
    guided = min(guided, rows)
    cond, uncond = outputs(rows, seed), outputs(guided, seed + 100)
    scale = torch.arange(1.0, guided + 1)[:, None, None, None] * 2
    made = classifier_free_guidance(cond, uncond, scale)
    assert torch.equal(made[guided:], cond[guided:])
    for row in range(guided):
        due = (1 - scale[row]) * uncond[row] + scale[row] * cond[row]
        torch.testing.assert_close(made[row], due)


def test_a_scale_of_1_is_the_conditional_output() -> None:
    cond, uncond = outputs(2, 0), outputs(2, 1)
    torch.testing.assert_close(classifier_free_guidance(cond, uncond, torch.ones(2, 1, 1, 1)), cond)


@given(share=st.floats(0, 1), seed=st.integers(0, 99))
def test_rescale_mixes_in_the_contrast_of_the_conditional_sample(share: float, seed: int) -> None:
    x, cond, uncond = outputs(3, seed), outputs(3, seed + 1), outputs(2, seed + 2)
    scale, rescale = torch.full((2, 1, 1, 1), 7.0), torch.tensor([share, 0.0])[:, None, None, None]

    def to_x0(v: torch.Tensor) -> torch.Tensor:
        return x - 0.5 * v

    plain = classifier_free_guidance(cond, uncond, scale, to_x0=to_x0)
    made = classifier_free_guidance(cond, uncond, scale, to_x0=to_x0, rescale=rescale)
    torch.testing.assert_close(plain[:2], x[:2] - 0.5 * (uncond + scale * (cond[:2] - uncond)))
    assert torch.equal(made[1:], plain[1:]), "a rescale of 0, and rows without guidance, are left as they are"
    due = share * to_x0(cond)[0].std() + (1 - share) * plain[0].std()
    torch.testing.assert_close(made[0].std(), due)
