"""Others of a generator's class: the same one each time, and not without bound."""

from __future__ import annotations

import studio
from studio.serving import MOST_KEPT, others


class Named(studio.Generator):
    """Made with a word."""

    def __init__(self, word: str, *, loud: bool = False) -> None:
        self.word, self.loud = word, loud


def test_the_same_arguments_give_the_same_generator_and_the_oldest_goes() -> None:
    made = others(Named)
    first = made("a", loud=True)
    assert (first.word, first.loud) == ("a", True)
    assert made("a", loud=True) is first
    assert made("a") is not first
    for place in range(MOST_KEPT):
        made(str(place))
    assert made("a", loud=True) is not first
