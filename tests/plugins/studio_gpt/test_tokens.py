"""Incremental detokenization yields whole characters, and stop strings end a text within tokens too."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from studio.errors import InputError
from studio_gpt.tokens import TORN, DetokenizedText, Tokens, find_stop, held_back

from .conftest import VOCAB, train_tokenizer

TOKENS = Tokens(train_tokenizer(), frozenset({1}))
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def grown(ids, step=1):
    """The texts on the way, fed so many tokens at a time."""
    written, shown = DetokenizedText(), []
    for end in [*range(step, len(ids), step), len(ids)]:
        written = written.grow(ids[:end], TOKENS.decode, last=end == len(ids))
        shown.append(written.text)
    return shown


@given(text=texts, step=st.integers(1, 4))
def test_a_text_comes_back_and_no_character_is_torn(text, step):
    shown = grown(TOKENS.encode(text), step)
    assert shown[-1] == text
    for part in shown:
        assert text.startswith(part)


@given(ids=st.lists(st.integers(3, VOCAB - 1), min_size=1, max_size=30))
def test_any_tokens_end_as_they_decode_at_once(ids):
    shown = grown(ids)
    assert shown[-1] == TOKENS.decode(ids)
    assert all(not part.endswith(TORN) for part in shown[:-1] if part != shown[-1])


@example(text="aaba", stops=["b", "aba"], cuts=[3])
@given(text=st.text("abc", max_size=30), stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
       cuts=st.lists(st.integers(0, 30), max_size=10))  # fmt: skip
def test_a_stop_string_is_found_wherever_the_text_is_cut(text, stops, cuts):
    ends = (end - len(stop) for end in range(len(text) + 1)
            for stop in sorted(stops, key=len, reverse=True) if text[:end].endswith(stop))  # fmt: skip
    whole = next(ends, None)
    seen, found = 0, None
    for end in [*sorted(cut for cut in cuts if cut <= len(text)), len(text)]:
        found = find_stop(text[:end], stops, seen)
        if found is not None:
            break
        shown = end - held_back(text[:end], stops)
        assert whole is None or shown <= whole, "nothing of a stop string is shown"
        seen = end
    assert found == whole


def test_half_characters_are_refused():
    with pytest.raises(InputError, match=r"lone surrogate, U\+D83C, at character 2"):
        TOKENS.encode("a\ud83c")
