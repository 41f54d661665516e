"""Bodies that are too large, late, truncated or damaged, and connections that send slowly."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path

import httpx
import PIL.Image
import pytest

import studio
from studio.server.limits import ImpatientProtocol
from tests.studio.server.running_server import LIMITS, RunningServer, running, until

JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "multipart/form-data; boundary=x"}


def part(name: str, text: str, more: str = "") -> bytes:
    return f'--x\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n{text}\r\n'.encode()


def test_a_large_body_is_refused_by_its_stated_and_by_its_real_length(server: RunningServer) -> None:
    def pieces():
        for _ in range(6):
            yield bytes(1 << 20)

    for content in (bytes(LIMITS.body_bytes + 1), pieces()):
        try:
            response = httpx.post(f"{server.url}/v1/completions", content=content, headers=JSON)
        except httpx.WriteError:  # the connection was closed while the body was being sent
            continue
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "body_too_large"


def spoken(server: RunningServer, head: bytes) -> bytes:
    """What the server answers to the beginning of a request after which nothing comes, until it closes."""
    with socket.create_connection(("127.0.0.1", server.port), 30) as connection:
        connection.sendall(head)
        answer = b""
        while block := connection.recv(1 << 16):
            answer += block
    return answer


def test_a_late_body_is_cut_off(server: RunningServer) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += b"Content-Length: 99\r\n\r\n{"
    answer = spoken(server, head)
    assert b" 408 " in answer.partition(b"\r\n")[0]
    assert b"body_too_slow" in answer


@pytest.mark.parametrize("head", [b"", b"GET /v1/models HTTP/1.1\r\nHost: local"])
def test_a_late_header_is_cut_off(server: RunningServer, monkeypatch: pytest.MonkeyPatch, head: bytes) -> None:
    monkeypatch.setattr(ImpatientProtocol, "header_s", 0.2)
    assert spoken(server, head) == b""


def test_the_second_request_of_a_connection_is_not_waited_for_either(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImpatientProtocol, "header_s", 0.2)
    with socket.create_connection(("127.0.0.1", server.port), 30) as connection:
        connection.sendall(b"GET /api/health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /api")
        while connection.recv(1 << 16):
            pass


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (part("prompt", "a cat") + part("image", "x", '; filename="a.png"'), "invalid_multipart"),  # no last boundary
        (part("prompt", "a cat")[:-10], "invalid_multipart"),
        (b"--x\r\nno header\r\n--x--\r\n", "invalid_multipart"),
        (b"--x\r\nContent-Disposition: form-data\r\n\r\n1\r\n--x--\r\n", "invalid_multipart"),
        (b"".join(part(f"f{i}", "1") for i in range(80)) + b"--x--\r\n", "invalid_multipart"),
        (b"".join(part("image", "1", '; filename="a"') for _ in range(20)) + b"--x--\r\n", "invalid_multipart"),
        (part("prompt", "p" * (2 << 20)) + b"--x--\r\n", "invalid_multipart"),
        (part("prompt", "a cat") + b"--x--\r\n", "invalid_value"),  # no picture
        (part("image", "x", '; filename="a.png"') + b"--x--\r\n", "missing_value"),  # no prompt
        (part("prompt", "a") + part("image", "not a picture", '; filename="a.png"') + b"--x--\r\n", "invalid_request"),
        (b"--x--\r\n", "missing_value"),
        (b"", "invalid_multipart"),
    ],
)
def test_a_damaged_form_is_one_clear_error(server: RunningServer, body: bytes, code: str) -> None:
    response = httpx.post(f"{server.url}/v1/images/edits", content=body, headers=FORM)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == code, response.text


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"1", b'"x"', b"[" * 100_000, b'{"prompt": "\\ud800"}',
     b'{"prompt": ' + b"9" * 5000 + b"}", b'{"prompt": NaN}', b"\xff\xfe", b'{"prompt": {"$ref": "#"}}'],
)  # fmt: skip
def test_damaged_json_is_one_clear_error(server: RunningServer, body: bytes) -> None:
    for path in ("/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/v1/images/generations"):
        response = httpx.post(server.url + path, content=body, headers=JSON)
        assert 400 <= response.status_code < 500, (path, response.text)
        assert response.json()["error"]["message"]


def test_bodies_that_are_held_at_once_are_bounded(tmp_path: Path) -> None:
    with running(tmp_path, limits=replace(LIMITS, held_bytes=1 << 16)) as server:
        body = {"prompt": "x" * 10_000, "unknown": "x" * (1 << 16)}
        answer = httpx.post(f"{server.url}/v1/completions", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "busy")
        for _ in range(8):  # each is given back
            assert httpx.post(f"{server.url}/v1/completions", json={"prompt": "x" * 30_000}).status_code == 400


def is_reset(client: socket.socket) -> bool:
    """Whether the server answers to one more byte that it knows the connection no more."""
    try:
        client.sendall(b"x")
    except ConnectionError:
        return True
    return False


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux has this limit")
@pytest.mark.parametrize("connection", ["keep-alive", "close"])
def test_a_client_that_does_not_read_is_cut_off(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, connection: str
) -> None:
    monkeypatch.setattr(ImpatientProtocol, "accept_s", 0.5)
    pixels = os.urandom(3 * 2048 * 2048)
    file = studio.Image(PIL.Image.frombytes("RGB", (2048, 2048), pixels))
    server.studio.store.put(file)
    head = f"GET /api/artifacts/{file.sha256} HTTP/1.1\r\nHost: localhost\r\nConnection: {connection}\r\n\r\n"
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(60)
        client.connect(("127.0.0.1", server.port))
        client.sendall(head.encode())
        until(lambda: is_reset(client))


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"a":' * 5000 + b"1" + b"}" * 5000, b"\x00\xff\xfe", b"9" * 5000])
@pytest.mark.parametrize("path", ["/api/jobs", "/v1/completions", "/sdapi/v1/txt2img", "/prompt"])
def test_what_is_not_readable_json_is_told_so(server: RunningServer, path: str, body: bytes) -> None:
    response = httpx.post(server.url + path, content=body, headers=JSON)
    assert response.status_code == 400
    assert "the body is not a JSON object" in response.text
