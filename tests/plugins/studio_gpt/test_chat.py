"""What belongs to a chat: a model with a template, and inputs that fit it."""

from __future__ import annotations

from typing import Any

import pytest

from studio.errors import InputError
from studio_gpt import chat
from studio_gpt.state import TextInputs
from studio_gpt.tokens import Tokens


def test_a_model_without_a_template(tokenizer: Any) -> None:
    inputs = TextInputs.parse({"prompt": "hello", "chat": True})
    with pytest.raises(InputError, match="has no chat template") as caught:
        chat.chat_tokens(Tokens(tokenizer, frozenset([1])), inputs)
    assert caught.value.field == "chat"


@pytest.mark.parametrize("more", [{"system": "a"}, {"turns": ["a", "b"]}, {"chat": True, "turns": ["a"]}])
def test_what_belongs_to_a_chat(more: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"need `chat`|even number"):
        TextInputs.parse({"prompt": "hello", **more})
