from __future__ import annotations

import json

import pytest

WINDOW = "spacetime:grid=4x8x8,window=2x4x4,tile=2x4x4"


def test_it_says_who_serves_and_why_the_others_do_not(studio):
    ran = studio("attention", "--shape", "1,256,2,16", "--bias", WINDOW, "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert found["serves"] in found["seconds"]
    assert "xformers" in found["refused"]
    assert all(seconds > 0 for seconds in found["seconds"].values())
    ran = studio("attention", "--shape", "1,64,4,16", "--kv-heads", "2", "--keys", "80", "--bias", "causal:window=9")
    assert ran.code == 0, ran.err
    assert "serves" in ran.out
    assert "torch has no such kernel for the CPU" in ran.out


def test_tuning_is_kept_and_looking_is_not(studio, own_home):
    shape = ("attention", "--shape", "1,64,2,64", "--dtype", "float64", "--json")
    studio(*shape)
    assert not (own_home / "attention.json").exists()
    tuned = json.loads(studio(*shape, "--tune").out)
    assert (own_home / "attention.json").exists()
    assert tuned["serves"] == min(tuned["seconds"], key=tuned["seconds"].get)
    assert json.loads(studio(*shape).out)["serves"] == tuned["serves"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--shape", "1,2,3"), "must be BATCH,TOKENS,HEADS,HEAD_DIM"),
        (("--shape", "1,8,2,8", "--bias", "casual"), "did you mean `causal`"),
        (("--shape", "1,8,2,8", "--bias", "causal:windw=2"), "did you mean `window`"),
        (("--shape", "1,8,2,8", "--bias", "causal:window=x"), "`window` of `causal` is `x`; it must be a whole number"),
        (("--shape", "1,8,2,8", "--bias", "spacetime:grid=2x2x2"), "`spacetime` lacks `window`"),
        (("--shape", "1,8,2,8", "--bias", "spacetime:grid=2x2"), "three sizes such as `8x24x24`"),
        (("--shape", "1,8,2,8", "--bias", "lengths:keys=9"), "Lengths has 9 keys; it must be from 0 to 8"),
        (("--shape", "1,8,2,8", "--bias", "causal:window=1,window=2"), "has `window` twice"),
        (("--shape", "1,8,3,8", "--kv-heads", "2"), "3 query heads, 2 key/value heads"),
    ],
)
def test_what_is_wrong_is_said(studio, argv, words):
    ran = studio("attention", *argv)
    assert ran.code == 2
    assert words in ran.err.replace("\n", " ")
