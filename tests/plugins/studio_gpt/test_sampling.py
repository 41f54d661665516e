"""Each filter against transformers' processor of the same name, and the draw against its probabilities."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from studio.errors import StudioError
from studio.testing.fake_gpu import FakeGpu
from studio_gpt import sampling
from studio_gpt.sampling import Sampling, SamplingInput

SIZE = 40
seeds = st.integers(0, 1 << 30)


def logits_of(seed):
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(seed)) * 3


def choose(logits, settings, tokens, prompt, seed, mask=None):
    (found,) = sampling.sample_tokens(logits[None], [SamplingInput(settings, tokens, prompt, seed, mask)])
    return found.token


def processed(processor, logits, tokens=(0,)):
    return processor(torch.tensor([list(tokens)]), logits[None].clone())[0]


@given(seed=seeds, k=st.integers(1, SIZE), p=st.floats(0.05, 0.99), penalty=st.floats(0.5, 3))
def test_filters_are_those_of_transformers(seed, k, p, penalty):
    from transformers.generation import logits_process as theirs

    logits, tokens = logits_of(seed), [3, 5, 3, seed % SIZE]
    assert torch.equal(sampling.keep_top_k(logits, k, k), processed(theirs.TopKLogitsWarper(k), logits))
    assert torch.equal(sampling.keep_min_p(logits, p), processed(theirs.MinPLogitsWarper(p), logits))
    ours, other = sampling.keep_top_p(logits, p), processed(theirs.TopPLogitsWarper(p), logits)
    assert (ours.isinf() != other.isinf()).sum() <= 1, "sums in another order may fall on either side of the border"
    repeated = processed(theirs.RepetitionPenaltyLogitsProcessor(penalty), logits, tokens)
    torch.testing.assert_close(sampling.penalise_repetition(logits, torch.tensor(tokens), penalty), repeated)


@given(seed=seeds, p=st.floats(0.01, 0.999), flat=st.floats(0.01, 10), steps=st.integers(1, 60))
def test_a_nucleus_is_that_of_all_tokens_sorted(seed, p, flat, steps):
    """Of peaked and flat distributions, with ties: rounded logits are equal often."""
    logits = torch.randn(3 * sampling.LIKELIEST, generator=torch.Generator().manual_seed(seed)) / flat
    logits = (logits * steps).round() / steps
    quick, by_sorting = sampling.keep_top_p(logits[None], p), sampling.keep_top_p(logits.expand(2, -1), p)[:1]
    assert (quick.isinf() != by_sorting.isinf()).sum() <= 1, "sums in another order may differ in the last bit"
    assert quick.argmax() == logits.argmax()


@given(seed=seeds, presence=st.floats(-2, 2), frequency=st.floats(-2, 2), bias=st.floats(-50, 50))
def test_the_likeliest_is_that_of_a_slow_loop(seed, presence, frequency, bias):
    logits, written = logits_of(seed), [1, 2, 2, 7, 2]
    slow = [
        x - (presence if i in written else 0) - frequency * written.count(i) + (bias if i == 9 else 0)
        for i, x in enumerate(logits.tolist())
    ]
    asked = Sampling(presence=presence, frequency=frequency, bias=((9, bias),))
    token = choose(logits, asked, [3, *written], 1, seed)
    assert slow[token] == pytest.approx(max(slow), abs=1e-4)


@given(seed=seeds, u=st.floats(0, 1, exclude_max=True))
def test_a_draw_is_the_inverse_of_the_summed_probabilities(seed, u):
    logits = sampling.keep_top_k(logits_of(seed), 5, 5)
    token, sums = int(sampling.draw(logits, u)), logits.double().softmax(-1).cumsum(-1)
    assert logits[token] > -torch.inf
    assert sums[token] >= u - 1e-12
    assert token == 0 or sums[token - 1] <= u + 1e-12


def test_draws_follow_the_probabilities_and_the_seed():
    logits = torch.tensor([0.6, 0.3, 0.1]).log()
    drawn = [choose(logits, Sampling(temperature=1.0), [0], 1, seed) for seed in range(2000)]
    assert drawn == [choose(logits, Sampling(temperature=1.0), [0], 1, seed) for seed in range(2000)]
    shares = torch.bincount(torch.tensor(drawn)) / 2000
    torch.testing.assert_close(shares, torch.tensor([0.6, 0.3, 0.1]), atol=0.04, rtol=0)
    assert len({sampling.uniform(1, place) for place in range(100)}) == 100


def test_a_mask_has_the_last_word():
    for seed in range(20):
        token = choose(logits_of(seed), Sampling(temperature=2.0), [1, 4], 1, seed, torch.arange(SIZE - 2) % 2 == 0)
        assert token % 2 == 0
        assert token < SIZE - 2
    with pytest.raises(StudioError, match="no token is allowed"):
        choose(logits_of(0), Sampling(), [1], 1, 0, torch.zeros(3, dtype=torch.bool))


@given(tokens=st.lists(st.integers(0, 4), max_size=40), most=st.integers(1, 8))
def test_a_guess_is_what_followed_the_same_tokens_before(tokens, most):
    guessed = sampling.prompt_lookup(tokens, most)
    assert len(guessed) <= most
    pairs = [tokens[i : i + 2] for i in range(len(tokens) - 2)]
    assert bool(guessed) == (len(tokens) > 2 and tokens[-2:] in pairs)


EXTREME = st.sampled_from([0.0, 5e-324, 1e-300, 1e-45, 1e-20, 1e-6, 1e-3])


@given(seed=seeds, temperature=EXTREME, p=st.sampled_from([5e-324, 1e-9, 1.0]), k=st.sampled_from([0, 1, 10**6]))
def test_the_smallest_temperatures_take_the_likeliest(seed, temperature, p, k):
    logits = logits_of(seed)
    assert choose(logits, Sampling(temperature, k, p, p if p < 1 else 0), [0], 1, seed) == logits.argmax()


@given(seed=seeds, temperature=st.one_of(EXTREME, st.floats(1e-3, 10)), penalty=st.sampled_from([5e-324, 1e-9, 10.0]),
       bias=st.sampled_from([1e308, -1e308, 0.0]), size=st.sampled_from([1.0, 3e38, -3e38, 1e-45]))  # fmt: skip
def test_no_setting_makes_a_draw_fail_or_leave_the_rule(seed, temperature, penalty, bias, size):
    three = torch.arange(SIZE) == 3
    asked = Sampling(temperature, repetition=penalty, presence=-10, bias=((3, bias), (4, 1e308)))
    for logits in (logits_of(seed), torch.full((SIZE,), size)):
        assert 0 <= choose(logits, asked, [0, 4], 1, seed) < SIZE
        assert choose(logits, asked, [0, 4], 1, seed, three) == 3


ROWS = st.builds(
    lambda settings, tokens, prompt, seed, allowed, top: SamplingInput(
        settings, tokens, min(prompt, len(tokens)), seed,
        None if allowed is None else torch.tensor([place in allowed for place in range(SIZE - 1)]), top,
    ),
    st.builds(
        Sampling, temperature=st.one_of(EXTREME, st.floats(0.1, 3)), top_k=st.sampled_from([0, 1, 3, SIZE, 10**6]),
        top_p=st.sampled_from([1.0, 0.9, 0.3, 5e-324]), min_p=st.sampled_from([0.0, 0.05, 1.0]),
        repetition=st.sampled_from([1.0, 1.3, 0.7]), presence=st.sampled_from([0.0, 0.5]),
        frequency=st.sampled_from([0.0, -0.2]), bias=st.sampled_from([(), ((1, 3.0), (SIZE - 1, -1e308))]),
    ),
    st.lists(st.integers(0, SIZE - 1), min_size=1, max_size=9), st.integers(0, 9), seeds,
    st.one_of(st.none(), st.sets(st.integers(0, SIZE - 2), min_size=1)), st.sampled_from([0, 0, 2, 100]),
)  # fmt: skip


@settings(max_examples=60)
@given(rows=st.lists(ROWS, min_size=1, max_size=6), seed=seeds, ties=st.booleans())
def test_rows_together_get_what_each_gets_alone(rows, seed, ties):
    logits = torch.stack([logits_of(seed + i) for i in range(len(rows))])
    if ties:  # which of equally likely ones are the likeliest is not said
        logits, rows = logits.round(), [replace(row, top=0) for row in rows]
    alone = [sampling.sample_tokens(each[None], [row])[0] for each, row in zip(logits, rows, strict=True)]
    assert sampling.sample_tokens(logits, rows) == alone


@settings(max_examples=20)
@given(rows=st.lists(ROWS, min_size=1, max_size=6), seed=seeds)
def test_on_a_gpu_rows_are_chosen_with_one_wait_as_on_a_cpu(rows, seed):
    """Sums are of integers there, so equal but for a draw within 1e-15 of a border; draws here have other last bits."""
    logits = torch.stack([logits_of(seed + i) for i in range(len(rows))])
    with FakeGpu.installed() as gpu:
        there = logits.to("gpu:0")
        with gpu.counting() as counts:
            found = sampling.sample_tokens(there, rows)
        assert counts.waited == 1, counts.waits
    assert found == sampling.sample_tokens(logits, rows)


def test_launches_of_a_choice_do_not_depend_on_the_rows():
    row = SamplingInput(
        Sampling(0.9, 5, 0.9, 0.05, 1.2, 0.5, 0.1, ((3, 1.0),)), [1, 2, 3, 2], 2, 1, torch.ones(SIZE) > 0, 3
    )
    launched = []
    with FakeGpu.installed() as gpu:
        for width in (2, 32):
            logits = torch.randn(width, SIZE).to("gpu:0")
            with gpu.counting() as counts:
                sampling.sample_tokens(logits, [row] * width)
            launched.append(counts.launched)
    assert launched[0] == launched[1]


def test_a_row_of_numbers_that_are_not_finite_is_told():
    logits = torch.stack([logits_of(0), logits_of(1)])
    logits[1, 5] = torch.nan
    assert [each.finite for each in sampling.sample_tokens(logits, [SamplingInput(Sampling(), [0], 1, 0)] * 2)] == [
        True,
        False,
    ]
