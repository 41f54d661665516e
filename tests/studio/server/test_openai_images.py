"""Images by OpenAI's own client, and by the requests of Open WebUI, LibreChat and n8n as they send them."""

from __future__ import annotations

import base64
import gc
import io
import socket
from collections.abc import Iterator

import httpx
import numpy as np
import openai
import PIL.Image
import pytest

import studio
from tests.studio.server.running_server import RunningServer, png, unfinished, until


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def opened(data: bytes) -> PIL.Image.Image:
    return PIL.Image.open(io.BytesIO(data))


@pytest.mark.slow  # docs/server.md, which is run, draws with this model too
def test_a_picture_of_the_usual_model(client: openai.OpenAI) -> None:
    asked = {"prompt": "a red apple", "size": "64x64", "extra_body": {"steps": 2, "seed": 7, "guidance": 3}}
    made = client.images.generate(model="gpt-image-1", **asked)
    again = client.images.generate(model="dall-e-3", response_format="b64_json", **asked)
    assert made.data[0].b64_json == again.data[0].b64_json
    assert opened(base64.b64decode(made.data[0].b64_json)).size == (64, 64)
    recipe = studio.Image.decode(base64.b64decode(made.data[0].b64_json)).recipe
    assert recipe.spec.inputs["steps"] == 2
    assert recipe.spec.seed == 7


def test_a_url_is_the_default_of_other_models(client: openai.OpenAI, http: httpx.Client) -> None:
    made = client.images.generate(model="plain", prompt="x", n=2, size="24x16")
    assert len({each.url for each in made.data}) == 2
    answer = http.get(made.data[0].url)
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["content-disposition"].startswith("inline")
    assert opened(answer.content).size == (24, 16)
    part = http.get(made.data[0].url, headers={"Range": "bytes=0-7"})
    assert (part.status_code, part.content) == (206, b"\x89PNG\r\n\x1a\n")
    assert http.get(made.data[0].url, headers={"If-None-Match": answer.headers["etag"]}).status_code == 304


@pytest.mark.parametrize(("form", "magic"), [("jpeg", b"\xff\xd8"), ("webp", b"RIFF"), ("png", b"\x89PNG")])
def test_what_librechat_sends(http: httpx.Client, form: str, magic: bytes) -> None:
    body = {"model": "plain", "prompt": "x", "n": 1, "background": "auto", "output_format": form, "quality": "auto",
            "output_compression": 80, "size": "auto", "response_format": "b64_json", "unheard_of": {}}  # fmt: skip
    answer = http.post("/v1/images/generations?api-version=1", json=body)
    assert answer.status_code == 200, answer.text
    assert base64.b64decode(answer.json()["data"][0]["b64_json"]).startswith(magic)


@pytest.mark.parametrize("name", ["image", "image[]", "image[0]"])
def test_what_open_webui_sends_for_edits(http: httpx.Client, name: str) -> None:
    form = {"model": "plain", "prompt": "x", "n": "1", "response_format": "b64_json", "size": "auto"}
    file = {name: ("a.png", png("RGB", (8, 6), (1, 2, 3)), "image/png")}
    answer = http.post("/v1/images/edits", data=form, files=file)
    assert answer.status_code == 200, answer.text
    assert opened(base64.b64decode(answer.json()["data"][0]["b64_json"])).getpixel((0, 0)) == (1, 2, 3)


def test_a_mask_is_white_where_it_was_transparent(client: openai.OpenAI) -> None:
    mask = PIL.Image.new("RGBA", (8, 8), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 4, 8))
    buffer = io.BytesIO()
    mask.save(buffer, "PNG")
    picture = ("a.png", png("RGB", (8, 8), (9, 9, 9)), "image/png")
    asked = {"model": "plain", "prompt": "x", "response_format": "b64_json"}
    made = client.images.edit(image=picture, mask=("m.png", buffer.getvalue(), "image/png"), **asked)
    pixels = np.asarray(opened(base64.b64decode(made.data[0].b64_json)).convert("L"))
    assert (pixels[:, :4] == 255).all()
    assert (pixels[:, 4:] == 0).all()
    without = client.images.edit(image=("m.png", buffer.getvalue(), "image/png"), **asked)  # its own transparency
    assert (np.asarray(opened(base64.b64decode(without.data[0].b64_json)).convert("L")) == pixels).all()
    with pytest.raises(openai.BadRequestError, match="size of `image`"):
        client.images.edit(image=picture, mask=("m.png", png("L", (4, 4), 0), "image/png"), **asked)


def test_a_variation(client: openai.OpenAI) -> None:
    picture = ("a.png", png("RGB", (8, 8), (9, 8, 7)), "image/png")
    with pytest.warns(DeprecationWarning, match="deprecated"):  # OpenAI's own service no longer has it
        made = client.images.create_variation(image=picture, model="plain", n=2, response_format="b64_json")
    assert [opened(base64.b64decode(each.b64_json)).getpixel((0, 0)) for each in made.data] == [(9, 8, 7)] * 2


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": "x", "n": 10_000}, "n"),
        ({"prompt": "x", "n": 0}, "n"),
        ({"prompt": ""}, "prompt"),
        ({}, "prompt"),
        ({"prompt": "x", "size": "huge"}, "size"),
        ({"prompt": "x", "size": "65x65"}, "size"),
        ({"prompt": "x", "steps": 0}, "steps"),
        ({"prompt": "x", "model": "gpt-9"}, "model"),
        ({"prompt": "x", "model": "text"}, None),
        ({"prompt": "x", "response_format": "gif"}, "response_format"),
        ({"prompt": "x", "lora": ["/etc/passwd"], "size": "x"}, "size"),  # weights are ignored, as any unknown field
    ],
)
def test_what_is_wrong_is_named(http: httpx.Client, body: dict[str, object], param: str | None) -> None:
    response = http.post("/v1/images/generations", json=body)
    assert response.status_code in (400, 404), response.text
    assert response.json()["error"]["param"] == param, response.text


def test_a_failure_does_not_show_the_machine(http: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    response = http.post("/v1/images/generations", json={"prompt": "x", "model": "failing"})
    assert response.status_code == 500
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("server_error", "generation_failed")
    assert "/home" not in response.text
    assert "/home/someone/secret.bin" in caplog.text
    number = error["message"].rpartition(" ")[2]
    assert number in caplog.text


def test_a_url_is_never_fetched_nor_a_path_opened(http: httpx.Client) -> None:
    for value in ("http://127.0.0.1:1/x.png", "file:///etc/passwd", "/etc/passwd"):
        form = {"prompt": "x", "model": "plain", "image": value}
        response = http.post("/v1/images/edits", data=form, files={"other": b""})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "image"


def test_a_client_that_goes_away_cancels(server: RunningServer, caplog: pytest.LogCaptureFixture) -> None:
    until(lambda: unfinished(server) == 0)
    body = b'{"prompt": "x", "model": "endless"}'
    head = f"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        until(lambda: unfinished(server) == 1)
    until(lambda: unfinished(server) == 0)
    gc.collect()
    assert "never retrieved" not in caplog.text
