"""A Text is a `str` with a hash, a recipe and a path."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

import studio
from studio.errors import MediaError

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(texts, texts)
def test_it_behaves_as_its_characters_do(one, other):
    text = studio.Text(one)
    assert isinstance(text, str)
    assert (text == one, text == other, hash(text)) == (True, one == other, hash(one))
    assert (len(text), text[:2], text + other, other in text) == (len(one), one[:2], one + other, other in one)
    assert (f"{text:>30}", "".join([text]), repr(text), {text: 1}[one]) == (f"{one:>30}", one, repr(one), 1)
    assert json.loads(json.dumps({"text": text, one: text})) == {"text": one, one: one}
    assert type(text.text) is type(str(text)) is type(text[:]) is str
    assert "".join(sorted([text, studio.Text(other)])) == "".join(sorted([one, other]))
    for same in (copy.copy(text), pickle.loads(pickle.dumps(text)), studio.Text(text), studio.Text.decode(text.data)):
        assert type(same) is studio.Text
        assert (same, same.sha256) == (text, text.sha256)


def test_it_has_a_path_and_a_hash_besides(tmp_path):
    text = studio.Text("apple")
    assert text.sha256 == "3a7bd3e2360a3d29eea436fcfb7e44c735d117c42d1c1835420b6b9942dd4f1b"
    opened = studio.Text.open(text.save(tmp_path / "a.txt"))
    assert (opened, opened.path) == (text, tmp_path / "a.txt")
    assert opened.attach(None, None).path is None
    assert opened != studio.Embedding([1.0])
    with pytest.raises(TypeError, match="not bytes"):
        studio.Text(b"apple")
    with pytest.raises(MediaError, match="lone surrogate"):
        _ = studio.Text("\ud800").data


def test_inputs_take_it_as_text_never_as_a_path(tmp_path):
    class Sample(studio.Inputs):
        prompt: str = studio.field("", help="text")
        story: studio.Text = studio.field(studio.Text(""), help="text")
        image: studio.Image | None = studio.field(None, help="a picture")

    path = studio.Text(str(tmp_path / "a.txt"))
    studio.Text("hello").save(path)
    found = Sample.parse({"prompt": path, "story": path})
    assert (found.prompt, found.story) == (path, path)
    assert found.story is path, "its recipe and path stay"
    with pytest.raises(studio.errors.InputError, match="not Text"):
        Sample.parse({"image": path})
