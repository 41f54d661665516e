"""Who may ask: the Host and Origin of a request, its token, and the headers of every response.

This is ASGI middleware around the whole application, so no route can be without it. A request is refused unless all of
these hold:

- its Host is one of the server's own names (against DNS rebinding);
- it has no Origin, or the server's own, and Sec-Fetch-Site does not say that another site sent it (against other sites
  in the user's browser). ``Origin: null`` is another site's;
- it has a valid token, if the server needs one;
- its body, if any, is JSON or multipart, which a page of another site cannot send without asking first. A few paths
  take JSON with any Content-Type, as scripts send it, from programs that are not browsers: without Origin and
  Sec-Fetch-Site.

Try it: ``curl -i -H 'Host: example.com' http://127.0.0.1:7860/v1/models``
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from studio.server.errors import Answers, HttpProblem, problem_of
from studio.server.limits import drain
from studio.server.tokens import AccessTokens, hash_of

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
LOCAL = "local"  # the client of a request without a token, or with the secret in `server.json`
BODIES = ("application/json", "multipart/form-data")
RESPONSE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
"""Headers of every response that does not set them itself."""

_AUTHORITY = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::(\d{1,5}))?")


@dataclass(frozen=True)
class Access:
    """Who may ask.

    Attributes:
        tokens: those of the data folder.
        secret: a token for the user's own programs, which find it in ``server.json``.
        given: the hash of a token of the command line; empty is none.
        hosts: names of the server besides the loopback ones, in lower case.
        origins: origins of other sites that may ask, such as ``https://chat.example.com``.
        any_address: accept any IP address as Host, for a server that listens on all of the machine's.
        exposed: whether the server listens on other addresses than loopback, and so always needs a token.
    """

    tokens: AccessTokens
    secret: str
    given: str = ""
    hosts: Collection[str] = field(default_factory=frozenset)
    origins: Collection[str] = field(default_factory=frozenset)
    any_address: bool = False
    exposed: bool = False

    @property
    def needs_token(self) -> bool:
        """Whether a request needs a token: once there is one, and if others can reach the server."""
        return bool(self.exposed or self.given or self.tokens.all())

    def client(self, authorization: str) -> str | None:
        """The name of the client of an Authorization header, or None if the header does not suffice."""
        if not self.needs_token:
            return LOCAL
        text = _token_in(authorization)
        if not text:
            return None
        if self.is_owner(authorization):
            return LOCAL
        if self.given and hmac.compare_digest(hash_of(text), self.given):
            return LOCAL
        return self.tokens.name_of(text)

    def is_owner(self, authorization: str) -> bool:
        """Whether an Authorization header has the secret of ``server.json``, which only the user can read."""
        return hmac.compare_digest(_token_in(authorization).encode(), self.secret.encode())

    def knows_host(self, host: str) -> bool:
        """Whether a Host header names this server."""
        found = _AUTHORITY.fullmatch(host.lower())
        if found is None:
            return False
        name = found[1] or found[2]
        return name in LOOPBACK or name in self.hosts or (self.any_address and _is_address(name))

    def knows_origin(self, origin: str, host: str) -> bool:
        """Whether an Origin header is the server's own, or was allowed."""
        return origin in self.origins or origin.lower() in (f"http://{host.lower()}", f"https://{host.lower()}")


class Security:
    """ASGI middleware that refuses what `Access` does not allow, and adds headers to all responses.

    `untyped` are the paths that take JSON with any Content-Type. `is_public` says of a method and a path whether it
    needs no token and may be linked to from other sites.
    """

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        answers: Answers,
        untyped: Collection[str],
        is_public: Callable[[str, str], bool],
    ) -> None:
        self._app, self._access, self._answers = app, access, answers
        self._untyped, self._is_public = untyped, is_public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection of ASGI."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            problem = self._problem(scope, headers)
        except Exception as error:  # such as a damaged file of tokens: nothing is served then
            problem = problem_of(error)

        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent = MutableHeaders(scope=message)
                for name, value in RESPONSE_HEADERS.items():
                    sent.setdefault(name, value)
            await send(message)

        if problem is None:
            await self._app(scope, receive, secured)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": problem.code})
        else:
            await drain(receive)
            await self._answers.response(scope["path"], problem)(scope, receive, secured)

    def _problem(self, scope: Scope, headers: Headers) -> HttpProblem | None:
        """Why the request is refused, or None; also sets the request's `client`."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if len(headers.getlist("host")) != 1 or not self._access.knows_host(host):
            return _refusal(
                421, "unknown_host", f"the server is not called `{host[:80]}`; start it with `--allow-host`"
            )
        if origin is not None and not self._access.knows_origin(origin, host):
            message = f"pages of `{origin[:80]}` may not ask; start the server with `--allow-origin`"
            return _refusal(403, "foreign_origin", message)
        if self._is_public(scope.get("method", ""), scope["path"]):
            return None
        allowed = origin is not None and origin in self._access.origins
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not allowed:
            return _refusal(403, "cross_site", "the request comes from a page of another site")
        client = self._access.client(headers.get("authorization", ""))
        if client is None:
            message = "a token is missing or wrong; create one with `studio token create NAME`"
            asks = {"WWW-Authenticate": 'Bearer, Basic realm="studio", charset="UTF-8"'}
            return _refusal(401, "invalid_token", message, asks)
        owner = self._access.is_owner(headers.get("authorization", ""))
        scope.setdefault("state", {}).update(client=client, owner=owner)
        has_body = "transfer-encoding" in headers or headers.get("content-length", "0").strip("0") != ""
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        plain = scope["path"] in self._untyped and origin is None and "sec-fetch-site" not in headers
        if scope["type"] == "http" and has_body and kind not in BODIES and not plain:
            message = f"the Content-Type is `{kind[:60]}`; it must be `application/json` or `multipart/form-data`"
            return _refusal(415, "unsupported_media_type", message)
        return None


def _refusal(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> HttpProblem:
    """A problem whose response ends the connection, as the body was not read."""
    return HttpProblem(status, code, message, headers={"Connection": "close", **(headers or {})})


def _token_in(authorization: str) -> str:
    """The token of a Bearer header, or the password of a Basic one; else empty."""
    scheme, _, rest = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(rest.strip(), validate=True).decode().partition(":")[2]
        except (binascii.Error, ValueError):
            return ""
    return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
