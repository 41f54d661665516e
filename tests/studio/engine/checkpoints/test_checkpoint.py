"""States as files: whatever a state may hold comes back bit for bit, and no damage goes unseen."""

from __future__ import annotations

import json
import math
import sys
import threading
from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

import studio
from studio.engine.checkpoints.checkpoint import Checkpoint, SavedProgress, pack
from studio.engine.checkpoints.encoding import Unsavable
from studio.errors import CheckpointError
from studio.generator import Rng
from studio.recipe import PluginRef
from studio.spec import JobSpec

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.complex64,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64,
    torch.bool,
]  # fmt: skip
LAYOUTS = ("plain", "transposed", "gaps", "expanded", "row", "channels last")


@dataclass(frozen=True, kw_only=True, eq=False)
class Anything(studio.State):
    a: Any = None
    b: Any = None
    c: Any = None


def progress(**changed):
    given = {
        "spec": JobSpec(generator="toy", seed=1, dtype="float32"), "generator_version": "1", "position": 1, "steps": 2,
        "plugin": PluginRef(name="tests", version="1"), "device": "cpu", "saved": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    return SavedProgress(**{**given, **changed})


def through_file(state, folder):
    path = folder / "one.safetensors"
    path.write_bytes(pack(progress(), state))
    return Checkpoint.open(path).state(state, "cpu")


@st.composite
def tensors(draw):
    dtype, layout = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(LAYOUTS))
    shape = draw(st.lists(st.integers(0 if layout == "plain" else 1, 4), min_size=0, max_size=4))
    if layout == "channels last":
        shape = [2, 3, 2, 2]
    pattern = torch.tensor(list(draw(st.binary(min_size=8, max_size=8))), dtype=torch.uint8)
    size = torch.empty((), dtype=dtype).element_size()
    raw = pattern.repeat(2 * math.prod(shape) * size // 8 + size)[: 2 * math.prod(shape) * size]
    if dtype == torch.bool:
        raw = raw % 2
    made = raw.view(dtype)[: math.prod(shape)].reshape(shape)
    match layout:
        case "transposed":
            return made.permute(tuple(reversed(range(len(shape)))))
        case "gaps":
            return raw.view(dtype)[::2].reshape(shape) if shape else made
        case "expanded":
            return made.unsqueeze(0).expand(3, *shape)
        case "row":
            return torch.stack([made, made])[1]
        case "channels last":
            return made.contiguous(memory_format=torch.channels_last)
    return made


@st.composite
def rngs(draw):
    rng = Rng(draw(st.integers(0, 2**64 - 1)))
    for _ in range(draw(st.integers(0, 3))):
        rng.python.gauss(0, 1)
    if draw(st.booleans()):
        torch.randn(draw(st.integers(1, 20)), generator=rng.torch)
    return rng


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("\ud800")
VALUES = st.recursive(
    PLAIN | tensors() | rngs(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers() | st.tuples(st.integers()), inner, max_size=3)
    ),
    max_leaves=6,
)


def bits(tensor):
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor).reshape(-1).view(torch.uint8)


def same(one, other):
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert bits(one).equal(bits(other))
    elif isinstance(one, Rng):
        assert one.state_dict() == other.state_dict()
        assert torch.equal(torch.rand(3, generator=one.torch), torch.rand(3, generator=other.torch))
        assert one.python.gauss(0, 1) == other.python.gauss(0, 1)
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            same(*pair)
    elif isinstance(one, dict):
        same(list(one), list(other))
        same(list(one.values()), list(other.values()))
    else:
        assert repr(one) == repr(other)  # -0.0 and nan too


@given(a=VALUES, b=tensors(), c=rngs(), notices=st.lists(st.text(max_size=4)).map(tuple))
def test_any_state_comes_back_bit_for_bit(a, b, c, notices, tmp_path_factory):
    state = Anything(position=3, steps=7, notices=notices, a=a, b=b, c=c)
    made = through_file(state, tmp_path_factory.mktemp("one"))
    for field in fields(state):
        same(getattr(state, field.name), getattr(made, field.name))


def test_what_is_one_object_stays_one(tmp_path):
    rng, x = Rng(3), torch.arange(3)
    made = through_file(Anything(a=rng, b=(rng, x), c={"x": x}), tmp_path)
    assert made.a is made.b[0]
    assert made.b[1] is made.c["x"]


def test_tensors_that_share_memory_are_saved_and_apart(tmp_path):
    both = torch.arange(6.0).reshape(2, 3)
    made = through_file(Anything(a=both[0], b=both[1]), tmp_path)
    made.a.zero_()
    assert made.b.tolist() == [3, 4, 5]


def test_dense_strides_are_kept_for_the_kernels_choice(tmp_path):
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    made = through_file(Anything(a=x, b=x[0].t() if x.dim() == 2 else x.permute(3, 2, 1, 0)), tmp_path)
    assert made.a.stride() == x.stride()
    assert made.b.stride() == x.permute(3, 2, 1, 0).stride()


def test_a_state_without_tensors_needs_no_torch(tmp_path):
    import subprocess

    path = tmp_path / "one.safetensors"
    code = f"""
import sys, pathlib, studio
from studio.engine.checkpoints.checkpoint import *
from studio.recipe import *
who = SavedProgress.model_validate_json({progress().model_dump_json()!r})
path = pathlib.Path({str(path)!r})
rng = studio.generator.Rng(1); rng.python.random()
class S(studio.State): pass
path.write_bytes(pack(who, S(notices=("a",), position=1)))
print(Checkpoint.open(path).state(S(), "cpu").notices, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "('a',) False"


def test_any_reader_of_safetensors_opens_it(tmp_path):
    path = tmp_path / "one.safetensors"
    path.write_bytes(pack(progress(), Anything(a=torch.full((2, 2), 7, dtype=torch.bfloat16))))
    with safe_open(path, "pt") as file:
        assert file.get_tensor("0").tolist() == [[7, 7], [7, 7]]
        assert json.loads(file.metadata()["request"])["spec"]["generator"] == "toy"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (threading.Lock(), r"`a` is a _thread.lock"),
        ({"x": [1, {2}]}, r"`a\['x'\]\[1\]` is a set"),
        (torch.nn.Parameter(torch.ones(2)), "`a` is a torch.nn.parameter.Parameter"),
        (torch.ones(2).to_sparse(), "sparse"),
        (torch.empty(2, device="meta"), "on no device"),
        pytest.param(10**5000, "cannot be written", id="huge"),
        (b"bytes", "`a` is a bytes"),
    ],
)
def test_what_cannot_be_saved_is_named(value, words):
    with pytest.raises(Unsavable, match=words):
        pack(progress(), Anything(a=value))


def test_a_field_that_holds_itself_cannot_be_saved():
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(Unsavable, match="contains itself"):
        pack(progress(), Anything(a=circle))


@given(data=st.data())
def test_no_damage_goes_unseen(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("one") / "one.safetensors"
    good = pack(progress(), Anything(a=torch.arange(9), b="text", c=Rng(4)))
    at = data.draw(st.integers(0, len(good) - 1))
    how = data.draw(st.sampled_from(["flip", "cut", "longer", "zeros"]))
    flipped = bytes([good[at] ^ (1 << data.draw(st.integers(0, 7)))])
    bad = {
        "flip": good[:at] + flipped + good[at + 1 :],
        "cut": good[:at],
        "longer": good + b"x",
        "zeros": good[:at] + bytes(len(good) - at),
    }[how]
    path.write_bytes(bad)
    if bad != good:
        with pytest.raises(CheckpointError, match="cannot be resumed"):
            Checkpoint.open(path).state(Anything(), "cpu")


@given(foreign=st.binary(max_size=200) | st.text().map(str.encode) | st.just(b"\x02" + b"\0" * 7 + b"[]"))
def test_foreign_files_are_refused(foreign, tmp_path_factory):
    path = tmp_path_factory.mktemp("one") / "one.safetensors"
    path.write_bytes(foreign)
    with pytest.raises(CheckpointError, match="`one` cannot be resumed"):
        Checkpoint.open(path)


def test_what_is_not_saved_comes_from_the_state_that_start_made(tmp_path):
    @dataclass(frozen=True, kw_only=True, eq=False)
    class Cached(studio.State):
        words: tuple = ()
        cache: Any = studio.unsaved()

    path, cache = tmp_path / "one.safetensors", object()
    path.write_bytes(pack(progress(), Cached(words=("a",), cache=lambda: None, position=3)))
    made = Checkpoint.open(path).state(Cached(cache=cache), "cpu")
    assert (made.words, made.position, made.cache) == (("a",), 3, cache)


def test_other_fields_are_refused_by_name(tmp_path):
    @dataclass(frozen=True, kw_only=True, eq=False)
    class Other(studio.State):
        a: Any = None
        b: Any = None
        d: Any = None

    path = tmp_path / "one.safetensors"
    path.write_bytes(pack(progress(), Anything()))
    with pytest.raises(CheckpointError, match="the fields of its state differ from those of Other now: `c`, `d`"):
        Checkpoint.open(path).state(Other(), "cpu")


def test_what_was_known_of_a_request_in_schema_1_is_read():
    old = {
        "schema_version": 1, "generator": "toy", "generator_version": "1", "plugin": {"name": "tests", "version": "1"},
        "inputs": {"a": 1}, "seed": 5, "weights": {"w": "c" * 64}, "device": "cpu", "dtype": "float32", "threads": None,
        "preview_every": 3, "label": "l", "client": "ann", "background": True, "invariant": False, "time_limit_s": 9.0,
        "destination": {"path": "x"}, "position": 1, "steps": 2, "batch_width": {"min": 1, "max": 2},
        "notices": ["cut"], "seconds": 1.5, "saved": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    read = SavedProgress.model_validate_json(json.dumps(old))
    spec = read.spec
    assert (spec.priority, spec.client, spec.label, spec.preview_every) == ("background", "ann", "l", 3)
    assert (spec.time_limit_s, spec.destination, spec.model.sha256) == (9.0, {"path": "x"}, {"w": "c" * 64})
    assert (read.position, read.steps, read.seconds, read.notices) == (1, 2, 1.5, ("cut",))
