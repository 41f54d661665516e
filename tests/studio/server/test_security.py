"""Every route, enumerated from the application, is refused to those who may not ask."""

from __future__ import annotations

import base64
import json
import re
import socket
import tempfile
from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIWebSocketRoute
from starlette.routing import WebSocketRoute
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

import studio
from studio.jobs import Jobs
from studio.server.app import ROUTERS, routes
from studio.server.comfy.routes import UNTYPED
from studio.server.limits import RequestLimits
from studio.server.security import Access
from studio.server.tokens import AccessTokens
from tests.studio.server.running_server import SECRET, RunningServer

BEARER = {"Authorization": f"Bearer {SECRET}"}


def application() -> FastAPI:
    with tempfile.TemporaryDirectory() as home, studio.Studio(home=home) as host, Jobs(host) as jobs:
        return routes(jobs, RequestLimits())


def every_route() -> Iterator[tuple[str, str]]:
    app = application()
    for route in [*app.routes, *(route for router in ROUTERS for route in router.routes)]:
        if hasattr(route, "path"):
            path = re.sub(r"\{[^}]*\}", "x", route.path)
            yield from ((method, path) for method in sorted(getattr(route, "methods", None) or ()))


ROUTES = [*every_route(), ("GET", "/"), ("GET", "/no/such/page"), ("OPTIONS", "/v1/models")]


def ask(at: httpx.Client | RunningServer, method: str, path: str, **headers: str) -> httpx.Response:
    body = b"{}" if method in ("POST", "PUT", "PATCH") else b""
    kind = {"Content-Type": "application/json"} if body else {}
    if isinstance(at, RunningServer):
        return httpx.request(method, at.url + path, content=body, headers={**kind, **headers}, timeout=30)
    return at.request(method, path, content=body, headers={**kind, **headers})


def test_the_routes_are_all_that_openapi_describes() -> None:
    app = application()
    described = {(method.upper(), re.sub(r"\{[^}]*\}", "x", path)) for path, found in app.openapi()["paths"].items()
                 for method in found}  # fmt: skip
    assert len(described) > 15
    assert described <= set(ROUTES)


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({}, 401, "invalid_token"),
        ({"Authorization": "Bearer wrong"}, 401, "invalid_token"),
        ({"Authorization": "Basic !!!"}, 401, "invalid_token"),
        ({"Authorization": "Bearer"}, 401, "invalid_token"),
        ({**BEARER, "Host": "evil.example"}, 421, "unknown_host"),
        ({**BEARER, "Host": "127.0.0.1.evil.example"}, 421, "unknown_host"),
        ({**BEARER, "Host": "evil.example@127.0.0.1"}, 421, "unknown_host"),
        ({**BEARER, "Host": ""}, 421, "unknown_host"),
        ({**BEARER, "Origin": "null"}, 403, "foreign_origin"),
        ({**BEARER, "Origin": "http://evil.example"}, 403, "foreign_origin"),
        ({**BEARER, "Sec-Fetch-Site": "cross-site"}, 403, "cross_site"),
        ({**BEARER, "Sec-Fetch-Site": "same-site"}, 403, "cross_site"),
    ],
)
def test_every_route_is_refused(guarded: RunningServer, headers: dict[str, str], status: int, code: str) -> None:
    with httpx.Client(base_url=guarded.url, timeout=30) as client:
        for method, path in ROUTES:
            if path == "/" and code in ("invalid_token", "cross_site"):
                continue  # the page itself, which shows nothing: see tests/studio/server/web
            response = ask(client, method, path, **headers)
            assert response.status_code == status, (method, path)
            if method != "HEAD":
                error = response.json()["error"]  # the WebUI's is the code itself, ComfyUI's has it as its type
                found = error if isinstance(error, str) else error["code"] if "code" in error else error["type"]
                assert found == code
            assert response.headers["x-content-type-options"] == "nosniff"
            assert "sandbox" in response.headers["content-security-policy"]


def test_each_form_of_the_token_is_accepted(guarded: RunningServer) -> None:
    text = guarded.tokens.create("laptop")
    basic = base64.b64encode(f"anyone:{text}".encode()).decode()
    for value in (f"Bearer {text}", f"bearer {text}", f"Basic {basic}", f"Bearer {SECRET}"):
        assert ask(guarded, "GET", "/api/health", Authorization=value).status_code == 200
    guarded.tokens.revoke("laptop")
    assert ask(guarded, "GET", "/api/health", Authorization=f"Bearer {text}").status_code == 401


def test_own_pages_and_programs_may_ask(server: RunningServer) -> None:
    own = {"Origin": server.url, "Sec-Fetch-Site": "same-origin"}
    for headers in ({}, own, {"Host": "localhost"}, {"Host": f"[::1]:{server.port}"}, {"Host": "LOCALHOST:1"}):
        assert ask(server, "GET", "/api/health", **headers).status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonp"])
def test_a_body_that_a_foreign_page_could_send_is_refused(server: RunningServer, kind: str) -> None:
    headers = {"Content-Type": kind} if kind else {}
    response = httpx.post(f"{server.url}/v1/completions", content=b'{"prompt": "x"}', headers=headers)
    assert response.status_code == 415
    assert response.json()["error"]["code"] == "unsupported_media_type"


BROWSERS = ({"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://evil.example"})


@pytest.mark.parametrize("kind", ["text/plain;charset=UTF-8", "application/x-www-form-urlencoded", ""])
def test_json_without_its_type_is_taken_from_scripts_only(server: RunningServer, http: httpx.Client, kind: str) -> None:
    headers = {"Content-Type": kind} if kind else {}
    for path in UNTYPED:
        assert http.post(path, content=b"{}", headers=headers).status_code in (200, 400)
        for more in BROWSERS:
            response = http.post(path, content=b"{}", headers={**headers, **more})
            assert response.status_code == 403
        own = {"Origin": server.url, "Sec-Fetch-Site": "same-origin"}
        assert http.post(path, content=b"{}", headers={**headers, **own}).status_code == 415


def test_every_websocket_is_refused(guarded: RunningServer) -> None:
    app = application()
    paths = [each.path for each in [*app.routes, *(route for router in ROUTERS for route in router.routes)]
             if isinstance(each, WebSocketRoute | APIWebSocketRoute)]  # fmt: skip
    assert {"/ws", "/api/ws"} <= {*paths}
    wrong = ({}, {"Authorization": "Bearer wrong"}, *({**BEARER, **each} for each in BROWSERS))
    asked = [("127.0.0.1", path, headers) for path in (*paths, "/no/such/page") for headers in wrong]
    for host, path, headers in [*asked, *(("evil.example", path, BEARER) for path in paths)]:
        here = socket.create_connection(("127.0.0.1", guarded.port))
        url = f"ws://{host}:{guarded.port}{path}"
        with pytest.raises(InvalidStatus) as failure, connect(url, sock=here, additional_headers=headers):
            pass
        assert failure.value.response.status_code == 403
    with connect(f"ws://127.0.0.1:{guarded.port}/ws", additional_headers=BEARER, open_timeout=60) as opened:
        assert json.loads(opened.recv())["type"] == "status"


def test_allowed_hosts_and_origins(tmp_path) -> None:
    access = Access(AccessTokens(tmp_path), SECRET, hosts={"studio.lan"}, origins={"https://chat.example"})
    assert access.knows_host("studio.lan:7860")
    assert not access.knows_host("other.lan")
    assert access.knows_origin("https://chat.example", "studio.lan")
    assert not access.knows_origin("https://chat.example.evil", "studio.lan")
    assert not access.knows_host("10.0.0.5")
    anywhere = Access(AccessTokens(tmp_path), SECRET, any_address=True, exposed=True)
    assert anywhere.knows_host("10.0.0.5:7860")
    assert not anywhere.knows_host("evil.example")


def test_tokens_are_stored_as_hashes_for_their_owner_alone(tmp_path) -> None:
    tokens = AccessTokens(tmp_path)
    text = tokens.create("phone")
    stored = tokens.path.read_text()
    assert text not in stored
    assert json.loads(stored)["tokens"][0]["name"] == "phone"
    assert tokens.path.stat().st_mode & 0o777 == 0o600
    assert AccessTokens(tmp_path).name_of(text) == "phone"


TRAVERSAL = ["../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e%2fserver.json", "....//", "%00", "a" * 64, "A" * 64,
             "..\\..\\x", "/etc/passwd", "%2fetc%2fpasswd", "x;y", "f" * 5000]  # fmt: skip


@pytest.mark.parametrize("payload", TRAVERSAL)
def test_a_path_parameter_reaches_no_file(server: RunningServer, payload: str) -> None:
    (server.studio.home / "server.json").write_text("{}")
    for template in ("/api/artifacts/{}", "/api/artifacts/{}/recipe", "/v1/models/{}", "/api/generators/{}"):
        response = httpx.get(server.url + template.format(payload))
        assert response.status_code == 404, template
        assert str(server.studio.home) not in response.text
