"""What leaves when room is needed; the ledger's arithmetic."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio.devices import device
from studio.devices.memory import ResidentMemoryProbe
from studio.engine.memory.eviction import Candidate, choose_victims
from studio.engine.memory.ledger import Ledger, MemoryNeed, least_streamed_bytes, tensor_bytes, weight_bytes
from studio.errors import UsageError, WeightsError
from studio.units import parse_bytes, show_bytes


def candidate(name, size=10, rank=0, idle=1.0, cost=1.0):
    return Candidate(name, size, rank, idle, cost)


def test_the_long_idle_and_the_cheap_to_return_go_first():
    assert choose_victims([candidate("fresh"), candidate("old", idle=100)], 5) == ["old"]
    assert choose_victims([candidate("dear", cost=100), candidate("cheap")], 5) == ["cheap"]
    assert choose_victims([candidate("dear", cost=100, idle=1000), candidate("cheap")], 5) == ["dear"]


def test_what_nobody_uses_goes_before_what_others_use():
    assert choose_victims([candidate("used", rank=1, idle=999), candidate("idle", cost=999)], 5) == ["idle"]


def test_none_goes_in_vain():
    assert choose_victims([candidate("a"), candidate("b")], 21) is None
    assert choose_victims([candidate("small", size=2, idle=9), candidate("large", size=20)], 15) == ["large"]
    assert choose_victims([], 0) == []


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, 2), st.floats(0, 9), st.floats(0, 9)), max_size=8),
    st.integers(0, 150),
)
def test_enough_goes_and_no_more(given_candidates, need):
    all_of = [Candidate(i, *each) for i, each in enumerate(given_candidates)]
    victims = choose_victims(all_of, need)
    sizes = {each.what: each.size for each in all_of}
    if victims is None:
        assert sum(sizes.values()) < need
    else:
        freed = sum(sizes[each] for each in victims)
        assert freed >= need
        assert all(freed - sizes[each] < need for each in victims)


def test_the_ledger_adds_up():
    ledger = Ledger(100)
    ledger.hold("a", 60)
    ledger.hold("a", 50)
    ledger.hold("b", 20)
    assert (ledger.used, ledger.free, ledger.most_used, ledger.held("a")) == (70, 30, 70, 50)
    ledger.release("a")
    ledger.release("a")
    assert (ledger.used, ledger.free) == (20, 80)


def test_a_sum_is_spelt_out():
    mib = 1 << 20
    words = "weights 42.0 MiB + state 102.4 KiB + step 55.0 MiB = 97.1 MiB > budget 64.0 MiB"
    assert MemoryNeed(42 * mib, mib // 10, 55 * mib).exceeds(64 * mib) == words


@pytest.mark.parametrize(
    ("text", "size"), [("2GiB", 2 << 30), ("500 MB", 500_000_000), ("1.5kib", 1536), ("7", 7), (" 3 b ", 3)]
)
def test_sizes_are_read(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "2 XiB", "0", "1e9", "9" * 40, "0.1B"])
def test_bad_sizes_are_refused(text):
    with pytest.raises(UsageError, match="the memory is"):
        parse_bytes(text)


def test_sizes_are_shown():
    assert [show_bytes(size) for size in (5, 2048, 3 << 30, 5 << 40)] == ["5 B", "2.0 KiB", "3.0 GiB", "5120.0 GiB"]


def write_safetensors(path, **tensors):
    header, at = {"__metadata__": {"x": "y"}}, 0
    for name, (dtype, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": [size], "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(at))


def test_weights_are_claimed_in_the_dtype_they_are_loaded_in(tmp_path):
    file = tmp_path / "w.safetensors"
    write_safetensors(file, a=("F32", 400), b=("I64", 80), c=("F16", 20))
    assert weight_bytes([file], "float32") == 400 + 80 + 40
    assert weight_bytes([file], "bfloat16") == 200 + 80 + 20
    other = tmp_path / "w.gguf"
    other.write_bytes(bytes(33))
    broken = tmp_path / "b.safetensors"
    broken.write_bytes(b"\xff" * 20)
    assert weight_bytes([other, broken], "float32") == 53


def test_configs_beside_streamed_weights_count_whole(tmp_path):
    from safetensors.numpy import save_file

    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    save_file({"a.weight": np.zeros(300_000, np.float32), "b.weight": np.zeros(500_000, np.float32)}, weights)
    config.write_text("{}")
    assert least_streamed_bytes([weights, config], "float32") == (2, 2_000_000), "the config, and the largest layer"
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"12345678")
    with pytest.raises(WeightsError, match="cannot be streamed: it is not a valid safetensors file"):
        least_streamed_bytes([config, broken], "float32")


def test_tensors_are_counted_once_wherever_they_hide():
    array = np.zeros(100, np.float32)

    class Holder:
        def __init__(self):
            self.inside = {"a": [array, array[:50]], "b": ("text", 3, None)}
            self.again = self

    assert tensor_bytes([array, array], "cpu") == 400
    assert tensor_bytes(Holder(), "cpu") == 400
    assert tensor_bytes(Holder(), "cuda:0") == 0


@pytest.mark.skipif(
    not isinstance(device("cpu").memory_probe(), ResidentMemoryProbe), reason="the kernel keeps no mark to reset"
)
def test_the_gauge_sees_a_peak_that_is_over():
    probe = device("cpu").memory_probe()
    probe.begin()
    np.ones(8_000_000).sum()
    assert 60e6 < probe.peak() < 120e6
    probe.begin()
    assert probe.peak() < 20e6
    assert device("cpu").free_memory() > 1 << 20


@pytest.mark.skipif(
    not isinstance(device("cpu").memory_probe(), ResidentMemoryProbe), reason="the kernel keeps no mark to reset"
)
def test_the_first_of_its_kind_is_weighed_with_what_the_allocator_had_kept():
    probe = device("cpu").memory_probe()

    def use():
        return [bytearray(100_000) for _ in range(600)]  # small enough for the heap

    kept, top = use(), bytearray(100_000)  # what lies on top keeps the heap from shrinking by itself
    del kept
    probe.begin(first=True)
    again = use()
    assert 50e6 < probe.peak() < 120e6
    assert len(again) + len(top) > 0
