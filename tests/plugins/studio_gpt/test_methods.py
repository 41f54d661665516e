"""`Studio.text`, `chat` and `explain`, as a server would use them."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import pytest

import studio
from studio.engine import Finished, Ticket
from studio.errors import Cancelled, InputError, UnknownName
from studio_gpt.conversation import Conversation

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 6}


@pytest.fixture
def host() -> Iterator[studio.Studio]:
    with studio.Studio(device="cpu") as made:
        yield made


def test_a_conversation_keeps_what_was_said(host: studio.Studio, model: str) -> None:
    talk = host.chat(model=model, seed=1, client="someone", **GREEDY)
    assert isinstance(talk, Conversation)
    events = []
    first = "".join(talk.stream("hello", watch=events.append))
    assert talk.turns == ["hello", first.strip()]
    assert isinstance(events[-1], Finished)
    assert events[-1].media.recipe.spec.seed == 1
    second = talk.say("and then")
    again = host.text("and then", model=model, chat=True, turns=["hello", first.strip()], **GREEDY)
    assert (second, talk.turns[2:]) == (str(again).strip(), ["and then", second])


def test_an_answer_that_is_left_early_stays_as_far_as_it_went(host: studio.Studio, model: str) -> None:
    talk = host.chat(model=model, temperature=3, max_tokens=400, seed=1)
    pieces = talk.stream("hello")
    said = next(pieces)
    while not said.strip():
        said += next(pieces)
    pieces.close()
    assert talk.turns == ["hello", said.strip()]


def test_a_text_that_is_left_early_is_cancelled(
    host: studio.Studio, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tickets, submit = [], host.submit

    def noted(*what: Any, **values: Any) -> Ticket:
        tickets.append(submit(*what, **values))
        return tickets[-1]

    monkeypatch.setattr(host, "submit", noted)
    pieces = host.text("hello", model=model, temperature=3, max_tokens=400, seed=1, stream=True)
    assert next(pieces)
    assert isinstance(pieces, Generator)
    pieces.close()
    with pytest.raises(Cancelled):
        tickets[0].result(500)
    with pytest.raises(InputError, match="`prompt` has"):
        list(host.text("x" * 3000, model=model, stream=True))


def test_a_turn_that_fails_is_taken_back(host: studio.Studio, model: str) -> None:
    talk = host.chat(model=model, **GREEDY)
    with pytest.raises(InputError, match="`prompt` has"):
        talk.say("x" * 3000)
    assert talk.turns == []
    with pytest.raises(UnknownName, match="no model, file or folder is called `smolm2`"):
        host.chat(model="smolm2")


def test_explain_tells_of_the_text_that_is_written(host: studio.Studio, checkpoints: Any) -> None:
    more = {"model": str(checkpoints("gpt2")[0]), "seed": 1, **GREEDY}
    found = host.explain("a red apple", top=2, **more)
    assert (found.tokens["text"], found.attention) == (str(host.text("a red apple", **more)), None)
    assert all(len(each["top"]) == 2 for each in found.tokens["written"])
    drawn = host.explain("a red apple", layer=1, head=2, priority="background", **more)
    assert drawn.tokens["text"] == found.tokens["text"]
    assert isinstance(drawn.attention, studio.Image)


def test_explain_checks_everything_before_anything_runs(host: studio.Studio) -> None:
    with pytest.raises(InputError, match="`head` is -1"):
        host.explain("a red apple", layer=0, head=-1)
    assert list(host.store) == []
