"""Conversations as tokens: in the model's chat template, which alone writes control tokens.

Templates are rendered in a sandboxed process (`studio.loaders.chat_template`).

Try it: ``pytest tests/plugins/studio_gpt/test_control_tokens.py``
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from studio.errors import InputError, ModelError
from studio.loaders.chat_template import ChatTemplate
from studio_gpt.tokens import TURN_ENDS, breaker

if TYPE_CHECKING:
    from studio_gpt.state import TextInputs
    from studio_gpt.tokens import Tokens

MODEL_FIELDS = ("content", "reasoning_content")  # of an assistant's message


def chat_tokens(tokens: Tokens, inputs: TextInputs) -> list[int]:
    """The tokens of a conversation (`system`, `turns`, `prompt`), up to where the model's answer begins.

    A model for single messages gets no `turns`. Raises InputError without a chat template, ModelError if that fails.
    """
    if tokens.chat_template is None:
        hint = "use a chat model, or remove `chat` to continue the prompt"
        raise InputError("chat", "the model has no chat template", hint=hint)
    contents = [inputs.prompt] if tokens.one_turn else [*inputs.turns, inputs.prompt]
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    if inputs.system:
        messages.insert(0, {"role": "system", "content": inputs.system})
    return conversation_tokens(tokens, messages)


def conversation_tokens(tokens: Tokens, messages: Sequence[Mapping[str, Any]], **more: Any) -> list[int]:
    """The tokens of a conversation in the model's chat template, which `tokens` must have; `more` is for `render`.

    Only the template itself writes control tokens. A control token that is spelt out in a message or in `more` is plain
    text, so a message cannot end its turn. Raises ModelError if the template fails.
    """
    template = ChatTemplate(tokens.chat_template or "", tokens.specials)
    mark = _unused(json.dumps([list(messages), more], ensure_ascii=False, default=str) + template.text)
    escape = breaker(tokens.control(template.text), mark)
    escape_model = breaker(tokens.control(), mark)  # a model writes tokens such as `<think>` that its template reads
    marked = {name: _each_text(value, escape) for name, value in more.items()}
    marked["messages"] = [_each_text(each, escape) for each in messages]
    for made, each in zip(marked["messages"], messages, strict=True):
        if each.get("role") == "assistant":
            made |= {name: escape_model(each[name]) for name in MODEL_FIELDS if isinstance(each.get(name), str)}
    text = template.render(**marked)
    ids = tokens.encode_marked(text, mark)
    begun = tokens.first is None or ids[:1] == [tokens.first]
    return ids if begun else [cast(int, tokens.first), *ids]


def turn_ends(tokens: Tokens) -> frozenset[int]:
    """End-of-turn tokens of the model: those with a known name, and the token that its template writes after
    answers.
    """
    control = tokens.control(tokens.chat_template or "")
    named = {number for text, number in control.items() if text in TURN_ENDS}
    answer = "The answer is 7431."
    messages = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": answer}]
    try:
        text = ChatTemplate(tokens.chat_template or "", tokens.specials).render(messages, add_generation_prompt=False)
    except ModelError:  # it expects another form of conversation; use the known names
        return frozenset(named)
    after = text.rpartition(answer)[2].lstrip()
    written = [text for text in control if after.startswith(text)]
    return frozenset(named | {control[max(written, key=len)]} if written else named)


def _unused(text: str) -> str:
    """A character that does not occur in a text."""
    return next(each for each in map(chr, range(0xF0000, 0xFFFFE)) if each not in text)


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    """Messages or tools with every text changed, except the names of fields and roles."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: each if key == "role" else _each_text(each, change) for key, each in value.items()}
    return [_each_text(each, change) for each in value] if isinstance(value, list | tuple) else value
