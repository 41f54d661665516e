"""``/v1/chat/completions``: answers to conversations, whole or streamed.

Try it::

    curl http://127.0.0.1:7860/v1/chat/completions -H 'Content-Type: application/json' \\
        -d '{"messages": [{"role": "user", "content": "Hi"}]}'
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from studio.errors import InputError
from studio.media import Media
from studio.server.catalogue import CHAT
from studio.server.openai.messages import Message, chat_inputs, schema_of
from studio.server.openai.sampling import TOP_LOGPROBS, Explained, SamplingBody, chat_logprobs, check_amount
from studio.server.openai.shape import finish_reason
from studio.server.openai.writing import AnswerForm, Writing, answer

router = APIRouter()


class ChatBody(SamplingBody):
    """A conversation to be answered."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    response_format: dict[str, Any] | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    tool_choice: Any = None
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=TOP_LOGPROBS)


class _ChatForm(AnswerForm):
    """The JSON of chat answers."""

    prefix, whole, piece = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def choice(self, index: int, text: str, reason: str, explained: Explained | None) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": chat_logprobs(explained, self.top) if explained else None,
            "finish_reason": reason,
        }

    def delta(self, index: int, text: str | None, reason: str | None, explained: Explained | None) -> dict[str, Any]:
        first = {"role": "assistant", "content": ""} if text is None and reason is None else {}
        return {
            "index": index,
            "delta": first or ({"content": text} if text else {}),
            "logprobs": chat_logprobs(explained, self.top) if explained else None,
            "finish_reason": reason,
        }

    def reason(self, made: Media) -> str:
        return finish_reason(made)


@router.post("/v1/chat/completions")
async def chat_completions(body: ChatBody, request: Request) -> Response:
    """Answer a conversation. With `stream` the answer is sent as it is written."""
    server = request.app.state.server
    if (body.tools or body.functions) and body.tool_choice != "none":
        raise InputError("tools", "the model cannot call tools", hint="leave out `tools`, or ask for JSON")
    inputs = chat_inputs(body.messages)
    check_amount(body, [inputs["prompt"], inputs["system"], *inputs["turns"]], server.limits, body.n)
    choice = server.catalogue.choose(CHAT, body.model)
    values = {**body.values(choice), **inputs, "chat": True}
    if body.max_completion_tokens:
        values["max_tokens"] = body.max_completion_tokens
    if schema := schema_of(body.response_format):
        values["json_schema"] = schema
    writing = Writing(choice, [values], body.n, explain=body.logprobs, top=max(1, body.top_logprobs))
    return await answer(request, writing, _ChatForm(choice.name, body.top_logprobs), body)
