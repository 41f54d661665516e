"""Conversations of the OpenAI form as the inputs of a generator of chat answers.

The generator takes a system prompt, earlier turns by the user and the assistant in turn, and the last message. So
messages of one role in a row are joined, and system messages between others become a part of the next user message.

Try it: ``chat_inputs([Message(role="user", content="Hi")])`` is ``{"prompt": "Hi", "system": "", "turns": []}``
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from studio.errors import InputError

_BETWEEN = "\n\n"


class Part(BaseModel):
    """A part of a message: text, or something else by its type."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str
    text: str | None = None
    refusal: str | None = None


class Message(BaseModel):
    """A message of a conversation."""

    model_config = ConfigDict(extra="allow", frozen=True)

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None

    @property
    def text(self) -> str:
        """The text of the message. Raises InputError for pictures, sounds and files."""
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        for part in self.content:
            if part.type not in ("text", "refusal", "input_text"):
                hint = "send only text"
                raise InputError("messages", f"a message has a part of the type `{part.type[:40]}`", hint=hint)
        return "\n".join(part.text or part.refusal or "" for part in self.content)


def chat_inputs(messages: Sequence[Message]) -> dict[str, Any]:
    """The inputs `prompt`, `system` and `turns` of a conversation. Raises InputError if it does not end with the user's
    message.
    """
    system: list[str] = []
    turns: list[tuple[str, str]] = []
    pending: list[str] = []  # system messages after the beginning
    for message in messages:
        role = "user" if message.role in ("tool", "function") else message.role
        if role in ("system", "developer"):
            (pending if turns else system).append(message.text)
            continue
        text = message.text
        if role == "user" and pending:
            text, pending = _BETWEEN.join([*pending, text]), []
        if turns and turns[-1][0] == role:
            turns[-1] = (role, turns[-1][1] + _BETWEEN + text)
        else:
            turns.append((role, text))
    if pending and turns and turns[-1][0] == "user":
        turns[-1] = ("user", _BETWEEN.join([turns[-1][1], *pending]))
    if not turns and system:  # some clients send only an instruction
        turns, system = [("user", _BETWEEN.join(system))], []
    if not turns or turns[-1][0] != "user" or not turns[-1][1].strip():
        raise InputError("messages", "`messages` must end with a message of the user that is not empty")
    if turns[0][0] == "assistant":
        turns.insert(0, ("user", ""))  # a greeting by the assistant: the user has said nothing before
    texts = [text for _, text in turns]
    return {"prompt": texts[-1], "system": _BETWEEN.join(system), "turns": texts[:-1]}


def schema_of(response_format: dict[str, Any] | None) -> str:
    """The JSON Schema of a `response_format`, as text; empty for free text. Raises InputError."""
    if response_format is None:
        return ""
    kind = response_format.get("type")
    if kind == "text":
        return ""
    if kind == "json_object":
        return '{"type": "object"}'
    named = response_format.get("json_schema")
    if kind != "json_schema" or not isinstance(named, dict) or not isinstance(named.get("schema"), dict):
        message = "`response_format` must have the type `text`, `json_object`, or `json_schema` with a `schema`"
        raise InputError("response_format", message)
    return json.dumps(named["schema"])
