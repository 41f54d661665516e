"""What a run is of is written down; another is refused or told of, whatever it is that differs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from studio.errors import StoreError, StudioError
from studio.training.agreement import agree, fingerprint

from . import tiny

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(fixed=st.dictionaries(st.text(max_size=5), VALUES, max_size=4), name=st.text(max_size=5), other=VALUES)
def test_the_same_is_agreed_to_and_another_is_refused(tmp_path_factory, fixed, name, other):
    folder = tmp_path_factory.mktemp("run")
    assert agree(folder, fixed, begun=False)
    assert agree(folder, fixed, begun=True)
    changed = {**fixed, name: other}
    if name in fixed and json.dumps(fixed[name]) != json.dumps(other) and fixed[name] != other:
        before = (folder / "run.json").read_bytes()
        with pytest.raises(StudioError, match="has other settings"):
            agree(folder, changed, begun=True)
        assert (folder / "run.json").read_bytes() == before
        assert not agree(folder, changed, begun=False)  # nothing has been trained: it may be another
    assert agree(folder, changed, begun=True)


def test_what_differs_is_named_with_short_values(tmp_path, capsys):
    agree(tmp_path, {"labels": ["cat", "dog"], "data": "a" * 32, "size": 32}, {"batch": 8, "rate": 0.1}, begun=False)
    with pytest.raises(StudioError) as caught:
        agree(tmp_path, {"labels": ["dog", "cat"], "data": "b" * 32, "size": 64}, begun=True)
    for told in ("`size` was 32, now 64", "`data` differs", "`labels` was ['cat', 'dog'], now ['dog', 'cat']"):
        assert told in caught.value.message
    assert "choose another `--work`" in caught.value.hint
    agree(tmp_path, {"size": 32}, {"batch": 16, "rate": 0.1}, begun=True)
    assert "changed: `batch` was 8, now 16" in capsys.readouterr().err
    agree(tmp_path, {"size": 32}, {"batch": 16}, begun=True)
    assert capsys.readouterr().err == ""


def test_a_run_of_an_earlier_version_is_taken_as_it_is(tmp_path):
    tiny.finish(tiny.start(tmp_path, 3))
    assert list(tiny.start(tmp_path, 5, fixed={"data": "a"})) == [3, 4]
    with pytest.raises(StudioError, match="has other settings"):
        tiny.start(tmp_path, 7, fixed={"data": "b"})


def test_a_run_that_saved_nothing_may_begin_with_something_else(tmp_path):
    tiny.start(tmp_path, 5, fixed={"data": "a"})
    run = tiny.start(tmp_path / "other", 5, fixed={"data": "a"})
    run.save()
    assert list(tiny.start(tmp_path, 2, fixed={"data": "b"})) == [0, 1]


@pytest.mark.parametrize("damage", ["", "[]", '{"fixed": 1, "changeable": {}}', "{"])
def test_a_damaged_record_is_named(tmp_path, damage):
    (tmp_path / "run.json").write_text(damage)
    with pytest.raises(StoreError, match=r"run\.json` is damaged"):
        agree(tmp_path, {}, begun=True)


def test_fingerprints_tell_data_apart(tmp_path):
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"two")
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    other = pixels.copy()
    other[1, 2, 3] = 0
    made = [
        fingerprint(pixels), fingerprint(other), fingerprint(pixels.reshape(3, 2, 4)), fingerprint(pixels, ["cat"]),
        fingerprint(pixels.astype(np.int16)), fingerprint(torch.from_numpy(other)), fingerprint(torch.zeros(3)),
        fingerprint(torch.zeros(4)), fingerprint(torch.zeros(3, dtype=torch.bfloat16)), fingerprint(torch.tensor(1.0)),
        fingerprint(tmp_path / "a"), fingerprint(tmp_path / "b"), fingerprint(["a", "b"]), fingerprint(["ab"]),
        fingerprint("a", "b"), fingerprint("b", "a"), fingerprint(),
    ]  # fmt: skip
    assert len(set(made)) == len(made)
    np.save(tmp_path / "pixels.npy", pixels)
    assert fingerprint(np.load(tmp_path / "pixels.npy", mmap_mode="r")) == made[0]
    assert fingerprint(pixels[:, ::-1][:, ::-1]) == made[0]
