"""Chat, completions, embeddings and models by OpenAI's own client, and by the requests of other programs."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import numpy as np
import openai
import pytest

from studio.server.openai.messages import Message, chat_inputs
from tests.studio.server.running_server import RunningServer

REMOTE = {"type": "json_schema", "json_schema": {"schema": {"$ref": "http://example.com"}}}
ASK = [{"role": "user", "content": "Write a short idea about a cat"}]


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_models(client: openai.OpenAI) -> None:
    names = [each.id for each in client.models.list()]
    assert "image" in names
    assert len(names) == len(set(names))
    assert client.models.retrieve("dall-e-3").id == "dall-e-3"
    with pytest.raises(openai.NotFoundError) as failure:
        client.models.retrieve("gpt-9")
    assert failure.value.code == "model_not_found"
    assert "image" in failure.value.message


def test_chat(client: openai.OpenAI) -> None:
    one = client.chat.completions.create(model="text", messages=ASK, max_tokens=12, seed=3)
    two = client.chat.completions.create(model="text", messages=ASK, max_tokens=12, seed=3)
    assert one.choices[0].message.content == two.choices[0].message.content != ""
    assert one.choices[0].finish_reason in ("stop", "length")
    assert one.usage.completion_tokens <= 12
    assert one.usage.total_tokens == one.usage.prompt_tokens + one.usage.completion_tokens > 0
    several = client.chat.completions.create(model="text", messages=ASK, max_completion_tokens=4, n=2, temperature=0)
    assert [each.index for each in several.choices] == [0, 1]
    assert {each.finish_reason for each in several.choices} == {"length"}


def test_a_streamed_chat_has_the_same_text(client: openai.OpenAI) -> None:
    asked = {"model": "text", "messages": ASK, "max_tokens": 12, "seed": 5}
    whole = client.chat.completions.create(**asked)
    pieces = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert pieces[0].choices[0].delta.role == "assistant"
    assert "".join(each.choices[0].delta.content or "" for each in pieces if each.choices) == (
        whole.choices[0].message.content
    )
    assert pieces[-1].choices == []
    assert pieces[-1].usage == whole.usage
    assert pieces[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert len({each.id for each in pieces}) == 1


def test_a_stream_ends_with_done(http: httpx.Client) -> None:
    body = {"messages": ASK, "max_tokens": 3, "stream": True}
    response = http.post("/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"


def test_json_of_a_schema(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"],
              "additionalProperties": False}  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    made = client.chat.completions.create(model="text", messages=ASK, response_format=form, max_tokens=30)
    assert isinstance(json.loads(made.choices[0].message.content)["yes"], bool)


def test_log_probabilities(client: openai.OpenAI) -> None:
    asked = {"model": "text", "messages": ASK, "max_tokens": 4, "temperature": 0}
    made = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    tokens = made.choices[0].logprobs.content
    assert len(tokens) == made.usage.completion_tokens
    for token in tokens:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 2
        assert bytes(token.bytes).decode() == token.token
    assert made.choices[0].message.content == client.chat.completions.create(**asked).choices[0].message.content
    pieces = list(client.chat.completions.create(**asked, logprobs=True, stream=True))
    noted = [each.choices[0].logprobs for each in pieces if each.choices[0].logprobs]
    assert [one.token for each in noted for one in each.content] == [each.token for each in tokens]


def test_completions(client: openai.OpenAI) -> None:
    asked = {"model": "text", "prompt": ["a red", "a blue"], "max_tokens": 5, "temperature": 0}
    whole = client.completions.create(**asked, echo=True, logprobs=1)
    assert [each.text[:5] for each in whole.choices] == ["a red", "a blu"]
    assert len(whole.choices[0].logprobs.token_logprobs) == len(whole.choices[0].logprobs.tokens)
    texts = ["", ""]
    for piece in client.completions.create(**asked, stream=True):
        texts[piece.choices[0].index] += piece.choices[0].text
    assert [each.text for each in client.completions.create(**asked).choices] == texts


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": ASK, "tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "assistant", "content": "Hi"}]}, "messages"),
        ({"messages": [{"role": "wizard", "content": "Hi"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
        ({"messages": ASK, "n": 10_000}, "n"),
        ({"messages": ASK, "temperature": 3}, "temperature"),
        ({"messages": ASK, "top_logprobs": 30}, "top_logprobs"),
        ({"messages": ASK, "response_format": {"type": "yaml"}}, "response_format"),
        ({"messages": ASK, "response_format": REMOTE}, "json_schema"),
        ({"messages": [{"role": "user", "content": "x" * 30_000}]}, "messages"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(http: httpx.Client, body: dict[str, object], param: str) -> None:
    for stream in (False, True):
        response = http.post("/v1/chat/completions", json={**body, "stream": stream})
        assert response.status_code in (400, 404), response.text
        error = response.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert error["param"] == param, error
        assert response.headers["x-should-retry"] == "false"


def test_an_unknown_model_is_answered_with_those_that_are_there(client: openai.OpenAI) -> None:
    for name in ("gpt-9", "image", "text/nowhere", "text//etc/passwd", "../text"):
        with pytest.raises((openai.NotFoundError, openai.BadRequestError), match="text") as failure:
            client.chat.completions.create(model=name, messages=ASK)
        assert failure.value.status_code == (400 if name == "image" else 404)


def test_embeddings(client: openai.OpenAI, http: httpx.Client) -> None:
    made = client.embeddings.create(model="embed", input=["a red apple", "a blue car"])  # asks for base64
    floats = http.post("/v1/embeddings", json={"input": "a red apple", "encoding_format": "float"}).json()
    vectors = np.array([each.embedding for each in made.data])
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    assert np.allclose(vectors[0], floats["data"][0]["embedding"], atol=1e-6)
    for body, param in (
        ({"input": []}, "input"),
        ({"input": [1, 2]}, "input"),
        ({"input": "x", "dimensions": 7}, "dimensions"),
    ):
        response = http.post("/v1/embeddings", json=body)
        assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def turns(*messages: tuple[str, str]) -> dict[str, object]:
    return chat_inputs([Message(role=role, content=text) for role, text in messages])


def test_conversations_of_other_forms() -> None:
    assert turns(("system", "Be kind."), ("user", "Hi")) == {"prompt": "Hi", "system": "Be kind.", "turns": []}
    assert turns(("user", "a"), ("user", "b"))["prompt"] == "a\n\nb"
    assert turns(("assistant", "Welcome"), ("user", "Hi"))["turns"] == ["", "Welcome"]
    assert turns(("user", "a"), ("assistant", "b"), ("system", "c"), ("user", "d"))["prompt"] == "c\n\nd"
    assert turns(("system", "only this"))["prompt"] == "only this"
    parts = chat_inputs([Message.model_validate({"role": "user", "content": [{"type": "text", "text": "Hi"}]})])
    assert parts["prompt"] == "Hi"
