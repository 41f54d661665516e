"""Who serves, why the others do not, what was measured, and how little asking costs."""

from __future__ import annotations

import json
import sys
import threading

import pytest
import torch

from studio.attention import (
    Backend,
    Causal,
    Dispatch,
    Lengths,
    Problem,
    SpaceTime,
    Table,
    attend,
    attend_rows,
    record_backends,
)
from studio.attention.table import kind_of
from studio.attention.tune import measure
from studio.errors import UnknownName, UsageError


class Mine(Backend):
    """Refuses more than 8 tokens."""

    name = "mine"

    def refuses(self, problem):
        return ["it serves 8 queries at most"] if problem.queries > 8 else []

    def attend(self, q, k, v, problem, scale):
        return torch.full_like(q, 7)


def tensors(tokens=8, heads=2, kv_heads=2, dim=8, batch=1):
    return [torch.randn(batch, tokens, n, dim) for n in (heads, kv_heads, kv_heads)]


def test_the_fixed_order_prefers_flash_where_nothing_is_masked_and_blocks_where_much_is():
    dispatch = Dispatch()
    assert dispatch.choose(Problem.of(*tensors())).name == "sdpa-flash"
    assert dispatch.choose(Problem.of(*tensors(), Causal())).name == "sdpa-flash"
    assert dispatch.choose(Problem.of(*tensors(1024, 8, 8), Causal())).name == "sdpa-flash"
    assert dispatch.choose(Problem.of(*tensors(512, 12, 12), Causal())).name == "chunked"
    window = SpaceTime((8, 8, 16), (4, 4, 4), (4, 4, 4))
    assert dispatch.choose(Problem.of(*tensors(1024), window)).name == "chunked"
    assert dispatch.choose(Problem.of(*tensors(), Lengths([3]))).name == "sdpa-flash"


def test_what_was_measured_goes_first_if_it_does_not_refuse():
    q, k, v = tensors()
    problem = Problem.of(q, k, v)
    table = Table()
    table.record(problem, {"sdpa-math": 2.0, "gone": 0.5, "sdpa-cudnn": 1.0})
    dispatch = Dispatch(table=table)
    assert dispatch.choose(problem).name == "sdpa-math"
    assert dispatch.order(problem)[:2] == ["sdpa-cudnn", "sdpa-math"]
    assert dispatch.choose(Problem.of(*tensors(512))).name == "sdpa-flash"


def test_a_table_is_kept_and_holds_for_its_versions(tmp_path):
    problem = Problem.of(*tensors())
    table = Table.load(tmp_path / "home")
    table.record(problem, {"sdpa-math": 1.0})
    table.save()
    assert Table.load(tmp_path / "home").fastest(problem) == ["sdpa-math"]
    file = tmp_path / "home" / "attention.json"
    kept = json.loads(file.read_text())
    for wrong in ({**kept, "versions": {**kept["versions"], "torch": "0"}}, {**kept, "rows": 3}, [], {}):
        file.write_text(json.dumps(wrong))
        assert Table.load(tmp_path / "home").rows == {}
    file.write_bytes(b"\xff{")
    assert Table.load(tmp_path / "home").rows == {}


def test_kinds_tell_apart_what_may_have_another_winner():
    kinds = [
        kind_of(Problem.of(*tensors(tokens, heads, kv_heads, dim), bias))
        for tokens, heads, kv_heads, dim, bias in [
            (64, 2, 2, 8, None), (256, 2, 2, 8, None), (64, 2, 1, 8, None), (64, 2, 2, 16, None),
            (64, 2, 2, 8, Causal()), (64, 2, 2, 8, Causal(3)), (64, 2, 2, 8, Lengths([3])),
            (64, 2, 2, 8, SpaceTime((4, 4, 4), (2, 2, 2))), (64, 2, 2, 8, SpaceTime((4, 4, 4), (4, 4, 2))),
        ]
    ]  # fmt: skip
    assert len(set(kinds)) == len(kinds)
    assert kind_of(Problem.of(*tensors(64))) == kind_of(Problem.of(*tensors(70)))


def test_measuring_names_each_backend_and_changes_nothing():
    dispatch = Dispatch()
    problem = Problem.of(*tensors())
    found = measure(dispatch, problem, ["sdpa-flash", "reference"], rounds=2)
    assert set(found) == {"sdpa-flash", "reference"}
    assert all(seconds > 0 for seconds in found.values())
    assert dispatch.table.rows == {}


def test_a_forced_backend_that_cannot_serve_raises_with_all_reasons():
    q, k, v = tensors()
    with pytest.raises(UsageError) as caught:
        attend(q, k, v, backend="sdpa-cudnn")
    text = str(caught.value)
    assert text.startswith(
        "the attention backend `sdpa-cudnn` does not support this: sdpa-cudnn: torch has no such kernel"
    )
    assert all(f"{name}: " in text for name in Dispatch().backends)
    assert "chunked: supports it" in text
    with pytest.raises(UnknownName, match="did you mean `chunked`"):
        attend(q, k, v, backend="chuncked")


def test_more_backends_can_be_brought_but_no_name_taken():
    dispatch = Dispatch([Mine()])
    q, k, v = tensors()
    assert (dispatch.attend(q, k, v, backend="mine") == 7).all()
    with pytest.raises(UsageError, match="it serves 8 queries at most"):
        dispatch.attend(*tensors(9), backend="mine")
    assert dispatch.explain(Problem.of(*tensors(9)))["mine"] == ["it serves 8 queries at most"]
    with pytest.raises(UsageError, match="an attention backend named `mine` exists already"):
        Dispatch([Mine(), Mine()])


def test_what_served_is_recorded_for_this_thread_alone():
    q, k, v = tensors()
    with record_backends() as outer:
        attend(q, k, v)
        with record_backends() as inner:
            attend(q, k, v, backend="sdpa-math")
        other = threading.Thread(target=lambda: attend(q, k, v, backend="chunked"))
        other.start()
        other.join()
    attend(q, k, v, backend="reference")
    assert outer == {"sdpa-flash", "sdpa-math"}
    assert inner == {"sdpa-math"}


def test_threads_may_choose_differently_at_once():
    q, k, v = tensors(64)
    due = attend(q, k, v, backend="reference")
    wrong = []

    def work(name):
        for _ in range(30):
            with record_backends() as used:
                made = attend(q, k, v, backend=name)
            if used != {name} or not torch.allclose(made, due, atol=1e-5):
                wrong.append(name)

    threads = [
        threading.Thread(target=work, args=(n,)) for n in ("sdpa-flash", "sdpa-math", "chunked", "reference") * 2
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong


def test_choosing_is_cheap():
    dispatch = Dispatch()
    for bias in (None, Causal(3), SpaceTime((2, 2, 2), (1, 1, 1))):
        q, k, v = tensors()
        dispatch.attend(q, k, v, bias=bias)
        calls = []
        sys.setprofile(lambda frame, event, argument, calls=calls: calls.append(event))
        try:
            dispatch._find(q, k, v, bias, "auto")
        finally:
            sys.setprofile(None)
        assert len(calls) < 100, "it is remembered; the benchmarks hold the time"


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (((1, 4, 8), (1, 4, 2, 8), (1, 4, 2, 8)), r"q is \(1, 4, 8\); it must have four dimensions"),
        (((1, 4, 3, 8), (1, 4, 2, 8), (1, 4, 2, 8)), "3 query heads, 2 key/value heads: the first must be a multiple"),
        (((1, 4, 2, 8), (1, 4, 0, 8), (1, 4, 0, 8)), "2 query heads, 0 key/value heads"),
        (((2, 4, 2, 8), (1, 4, 2, 8), (1, 4, 2, 8)), "do not match: they need one batch size"),
        (((1, 4, 2, 8), (1, 4, 2, 8), (1, 5, 2, 8)), "k and v the same tokens"),
        (((1, 4, 2, 8), (1, 4, 2, 9), (1, 4, 2, 8)), "q and k the same head_dim"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "reference", "sdpa-flash", "chunked"])
def test_tensors_that_do_not_match_are_refused_by_all_alike(shapes, words, backend):
    with pytest.raises(UsageError, match=words):
        attend(*(torch.zeros(shape) for shape in shapes), backend=backend)


def test_a_bias_is_a_description():
    with pytest.raises(UsageError, match=r"bias is Tensor; it must be a `studio.attention.Bias`"):
        attend(*tensors(), bias=torch.ones(8, 8))


def test_dtypes_are_checked():
    q, k, v = (torch.zeros(1, 4, 2, 8, dtype=torch.int64) for _ in range(3))
    with pytest.raises(UsageError, match="the tensors are int64; attention needs float64, float32, bfloat16, float16"):
        attend(q, k, v)
    with pytest.raises(UsageError, match="one dtype and one device: q float32 on cpu, k float16 on cpu"):
        attend(q.float(), k.half(), v.half())


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
def test_rows_are_served_as_each_would_be(heads, kv_heads):
    torch.manual_seed(0)
    lengths = [1, 7, 16, 90]
    q = torch.randn(len(lengths), heads, 32)
    pairs = [torch.randn(2, 1, length, kv_heads, 32) for length in lengths]
    with record_backends() as used:
        rows = attend_rows(q, [pair[0] for pair in pairs], [pair[1] for pair in pairs])
    assert used
    alone = torch.cat([attend(one[None, None], *pair) for one, pair in zip(q, pairs, strict=True)])[:, 0]
    assert torch.equal(rows, alone)
    pairs[1][1, 0, 3] = torch.nan
    rows = attend_rows(q, [pair[0] for pair in pairs], [pair[1] for pair in pairs])
    assert rows[1].isnan().all()
    assert torch.equal(rows[[0, 2, 3]], alone[[0, 2, 3]]), "the others are spared"
    with pytest.raises(UsageError):
        attend_rows(q, [pair[0][..., :8] for pair in pairs], [pair[1] for pair in pairs])
