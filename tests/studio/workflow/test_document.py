"""The YAML reader: YAML 1.2's plain data with line numbers, and a limit to everything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from studio.errors import WorkflowError
from studio.workflow import document
from studio.workflow.document import Value, parse, read


def plain(value: Value) -> Any:
    if isinstance(value.data, dict):
        return {key: plain(each) for key, each in value.data.items()}
    return [plain(each) for each in value.data] if isinstance(value.data, list) else value.data


keys = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=8)
data = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**17), 10**17) | st.text(st.characters(exclude_categories=["C"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(keys, data, max_size=4))
def test_what_a_library_writes_is_read_as_it_was(given_data: dict[str, Any]) -> None:
    assert plain(parse(yaml.safe_dump(given_data, allow_unicode=True), "f")) == given_data


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", "yes"), ("on", "on"), ("0x10", "0x10"), ("0o7", "0o7"), ("1_000", "1_000"), ("12:30", "12:30"),
        (".inf", ".inf"), (".nan", ".nan"), ("2020-01-01", "2020-01-01"), ("=", "="), ("1e3", 1000.0), (".5", 0.5),
        ("-7", -7), ("+7", 7), ("1.", 1.0), ("1e9999", "1e9999"), ("9" * 19, float("9" * 19)), ("~", None), ("", None),
        ("TRUE", True), ("tRUE", "tRUE"), ("'1'", "1"), ('"true"', "true"), ("|-\n  1", "1"),
    ],
)  # fmt: skip
def test_plain_words_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    found = parse(f"a: {text}\n", "f").data["a"].data
    assert (found, type(found)) == (value, type(value))


def test_a_value_knows_its_line() -> None:
    root = parse("a: 1\n# two\nb:\n  - x\n  - c: 2\n", "flow.yaml")
    assert str(root.data["b"].place) == "flow.yaml:3"
    assert [each.place.line for each in root.data["b"].data] == [4, 5]
    assert root.get("c") is None
    assert root.data["a"].get("x") is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: &a [x, x]\nb: [*a, *a]", ":1: `a` is an anchor"),
        ("b: *a", "`a` is an alias|undefined alias"),
        ("name: x\nname: y", ":2: duplicate key `name`; the first is in line 1"),
        ("!!python/object/apply:os.system ['true']", "is a tag"),
        ("a: !!binary aGk=", "is a tag"),
        ("nodes: " + "[" * 100 + "]" * 100, "nested more than 12 deep"),
        ("? [a]\n: b", "a key must be a word"),
        ("", ":1: the file is empty"),
        ("a: 1\n---\nb: 2", ":2: the file has more than one document"),
        ("a: b: c", ":1: not YAML"),
        ("a: [", "not YAML"),
        ("a: \x00", "not YAML"),
    ],
)
def test_what_is_not_plain_data_is_refused(text: str, reason: str) -> None:
    with pytest.raises(WorkflowError, match=reason):
        parse(text, "flow.yaml")


def test_the_number_of_values_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "MAX_VALUES", 10)
    assert parse("[1, 2, 3, 4, 5, 6, 7, 8, 9]", "f").data[8].data == 9
    with pytest.raises(WorkflowError, match="more than 10 values"):
        parse("[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]", "f")


def test_files_that_are_no_text_or_too_large_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "flow.yaml"
    file.write_bytes(b"name: x\nabout: \xff\xfe")
    with pytest.raises(WorkflowError, match=r"flow\.yaml:2: not UTF-8 text"):
        read(file)
    file.write_bytes(b"# " + b"x" * document.MAX_BYTES)
    with pytest.raises(WorkflowError, match="larger than 1,048,576 bytes"):
        read(file)
    file.write_bytes(b"\xef\xbb\xbfname: x")
    assert plain(read(file)) == {"name": "x"}
    with pytest.raises(WorkflowError, match="cannot read") as caught:
        read(tmp_path / "none.yaml")
    assert caught.value.hint == "name a YAML file, or a workflow of `studio run --list`"


@given(st.text("ab:-[]{}&*!|>'\"#%\n ,?0.~") | st.binary(max_size=60).map(lambda each: each.decode("latin-1")))
def test_any_text_is_read_or_refused(text: str) -> None:
    told: tuple[tuple[str, str | None], ...] = ()
    try:
        assert parse(text, "f").place.line >= 1
    except WorkflowError as error:
        told = error.problems
    assert all(message.startswith("f:") for message, _ in told)
