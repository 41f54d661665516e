"""Cached results: keys, a damaged store or cache, and the budget."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import studio
from studio.recipe import MediaRef
from studio.store import Store
from studio.workflow.result_cache import ResultCache, key_of

from .conftest import Write, states

CHAIN = """
name: chain
nodes:
  one: {use: template, inputs: {text: "hello"}}
  two: {use: template, inputs: {text: "${one} again"}}
outputs:
  two: ${two}
"""

json = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3)
                    | st.dictionaries(st.text(), inner, max_size=3), max_leaves=6)  # fmt: skip


@given(one=st.tuples(json, json, st.integers(0)), other=st.tuples(json, json, st.integers(0)))
def test_a_key_says_everything(one: tuple, other: tuple) -> None:
    assert (key_of(*one) == key_of(*other)) is (repr_of(one) == repr_of(other))


def repr_of(value: object) -> str:
    """Told apart as JSON does: true is not 1, and the order of keys is nothing."""
    if isinstance(value, dict):
        return repr(sorted((key, repr_of(each)) for key, each in value.items()))
    return repr([repr_of(each) for each in value]) if isinstance(value, list | tuple) else repr(value)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("node", ["hello", "hello again"])
def test_a_damaged_artifact_is_made_again(
    write: Write, host: studio.Studio, damage: Callable[[Path], object], node: str
) -> None:
    file = write(CHAIN)
    host.run(file)
    damage(host.store.get(studio.Text(node).sha256).path)
    again = host.run(file)
    assert again["two"].text == "hello again"
    assert host.store.open(studio.Text(node).sha256).data == node.encode()
    assert states(again) == {
        "one": "done" if node == "hello" else "remembered", "two": "remembered" if node == "hello" else "done",
    }  # fmt: skip


def test_a_damaged_recipe_and_a_damaged_memo_cost_a_run_only(write: Write, host: studio.Studio) -> None:
    file = write(CHAIN)
    host.run(file)
    host.store.get(studio.Text("hello").sha256).path.with_suffix(".json").write_text("{", "utf-8")
    again = host.run(file)
    assert again.nodes["one"].state == "done"
    assert any("damaged" in each for each in again.nodes["one"].notices)
    assert host.store.recipe(studio.Text("hello").sha256) is not None
    (host.home / "memo.sqlite3").write_bytes(b"garbage" * 1000)
    third = host.run(file)
    assert third["two"].text == "hello again"
    assert any("has been recreated" in each for each in third.nodes["one"].notices)
    assert host.run(file).nodes["two"].state == "remembered"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


def test_over_its_budget_it_forgets_what_was_used_least_recently(store: Store) -> None:
    """What somebody asked for, or stored again, is never removed; recipes stay."""

    def made(letter: str) -> MediaRef:
        text = studio.Text(letter * 1000)
        store.put(text)
        return MediaRef(sha256=text.sha256, media_type=text.media_type)

    refs = {letter: made(letter) for letter in "abcd"}
    with ResultCache(store, budget=2500) as cache:
        for letter, ref in refs.items():
            cache.add(letter, ref, intermediate=letter != "a")
        cache.finish(list("abcd"), [refs["a"].sha256])
    with ResultCache(store, budget=2500) as cache:
        assert [letter for letter in "abcd" if cache.find(letter)] == ["a", "c", "d"]
        cache.finish(["c"], [])
        cache.add("e", made("e"), intermediate=True)
        cache.finish(["e"], [])
        assert [letter for letter in "abcde" if cache.find(letter)] == ["a", "c", "e"]
    assert store.find(refs["a"].sha256)


def test_a_result_of_another_type_is_not_taken(store: Store) -> None:
    text = studio.Text("a")
    store.put(text)
    with ResultCache(store) as cache:
        cache.add("k", MediaRef(sha256=text.sha256, media_type="image/png"), intermediate=False)
        assert cache.find("k") is None
        cache.add("k", text.ref, intermediate=False)
        assert cache.find("k") == text.ref
        assert cache.find("other") is None
