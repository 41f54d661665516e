"""Errors as HTTP responses: the status of each of Studio's errors, and the body in the form of each interface.

An error that the client can mend says what is wrong and what is allowed. Any other says only that something failed,
with a number under which the server's log has the whole reason: its text may contain paths of the machine.

Try it: ``print(problem_of(studio.errors.UnknownName("model", "gpt-9", ["text"])))``
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse

from studio.errors import (
    Busy,
    Cancelled,
    DeviceLost,
    EngineClosed,
    GeneratorFailed,
    InputError,
    MediaError,
    ModelError,
    OutOfMemory,
    StudioError,
    TimedOut,
    UnknownName,
    UsageError,
    describe,
)  # fmt: skip

log = logging.getLogger("studio.server")

RETRY_S = 2  # after which a busy server may be asked again
_UNROUTED = ((404, "Not Found"), (405, "Method Not Allowed"))  # what starlette says of paths and methods
_NOT_JSON = "the body is not a JSON object; send one, with its Content-Type"
_LONGEST = 1000  # characters of a message


@dataclass(frozen=True)
class HttpProblem:
    """What a response says about an error.

    `code` is a word for programs, `param` the name of the input that is wrong, if it is one, and `retry` says whether
    the same request may succeed later.
    """

    status: int
    code: str
    message: str
    param: str | None = None
    retry: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def phrase(self) -> str:
        """The standard words for the status."""
        return HTTPStatus(self.status).phrase


class Refusal(HTTPException):
    """A request that the server itself refuses, before any generator is asked."""

    def __init__(self, problem: HttpProblem) -> None:
        super().__init__(problem.status, problem.message, headers=dict(problem.headers))
        self.problem = problem


def refused(status: int, code: str, message: str, *, param: str | None = None, close: bool = False) -> Refusal:
    """The exception for a refusal; with `close` the connection ends, as the rest of the request is not read."""
    return Refusal(HttpProblem(status, code, message, param, headers={"Connection": "close"} if close else {}))


Shape = Callable[[HttpProblem], dict[str, Any]]
"""Makes the JSON body of an error."""


def native(problem: HttpProblem) -> dict[str, Any]:
    """The form of Studio's own interface."""
    return {"error": {"code": problem.code, "message": problem.message, "field": problem.param}}


@dataclass(frozen=True)
class Answers:
    """Makes the responses for errors. `shapes` has the form of the body for the paths that start with a prefix."""

    shapes: Mapping[str, Shape] = field(default_factory=dict)

    def response(self, path: str, problem: HttpProblem) -> JSONResponse:
        """The response to a request for that path."""
        shape = next((each for prefix, each in self.shapes.items() if path.startswith(prefix)), native)
        headers = {"X-Should-Retry": str(problem.retry).lower(), **problem.headers}
        if problem.retry:
            headers["Retry-After"] = str(RETRY_S)
        return JSONResponse(shape(problem), problem.status, headers)

    async def handle(self, request: Request, error: Exception) -> JSONResponse:
        """FastAPI's exception handler."""
        problem = problem_of(error)
        if isinstance(error, HTTPException) and (error.status_code, error.detail) in _UNROUTED:
            said = clean(f"there is no `{request.method} {request.url.path[:100]}`; `/api/openapi.json` lists all")
            problem = replace(problem, message=said)
        return self.response(request.url.path, problem)


def problem_of(error: Exception) -> HttpProblem:
    """What to say about any exception. Those that the client cannot mend are logged."""
    if isinstance(error, Refusal):
        return error.problem
    if isinstance(error, RequestValidationError):
        return _of_validation(error.errors())
    if isinstance(error, ClientDisconnect):
        return HttpProblem(499, "client_closed_request", "the client has closed the connection")
    if isinstance(error, HTTPException):
        if error.status_code == 400:  # FastAPI's, for a body that is not UTF-8, or is nested too deep
            return HttpProblem(400, "invalid_json", _NOT_JSON)
        code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
        return HttpProblem(error.status_code, code, clean(str(error.detail)), headers=error.headers or {})
    if isinstance(error, StudioError):
        return _of_studio(error)
    return _unexpected(error, "the server failed")


def _of_studio(error: StudioError) -> HttpProblem:
    said = clean(f"{error.message}; {error.hint}" if error.hint else error.message)
    match error:
        case UnknownName():
            code = "model_not_found" if error.kind in ("generator", "model", "model, file or folder") else "not_found"
            return HttpProblem(404, code, said, param="model" if code == "model_not_found" else None)
        case InputError():
            return HttpProblem(400, "invalid_value", said, param=error.field or None)
        case UsageError() | MediaError():
            return HttpProblem(400, "invalid_request", said)
        case ModelError():
            return HttpProblem(404, "model_not_found", said, param="model")
        case Busy():
            return HttpProblem(
                429, "too_many_requests", "too many requests are unfinished; try again later", retry=True
            )
        case Cancelled():
            return HttpProblem(409, "cancelled", "the request was cancelled")
        case EngineClosed() | DeviceLost():
            return _unexpected(error, "the server cannot run requests now", 503, "unavailable")
        case OutOfMemory():
            return _unexpected(error, f"{_of(error)} ran out of memory; ask for less", code="out_of_memory")
        case TimedOut():
            return _unexpected(error, f"{_of(error)} exceeded its time limit", 504, "timed_out")
        case GeneratorFailed():
            return _unexpected(error, f"{_of(error)} failed", code="generation_failed")
    return _unexpected(error, "the server failed")


def _of(error: GeneratorFailed | OutOfMemory | TimedOut) -> str:
    """What has failed; the error of a job does not name its generator."""
    return f"`{error.generator}`" if error.generator else "the job"


def _unexpected(error: Exception, what: str, status: int = 500, code: str = "internal_error") -> HttpProblem:
    """A problem of the server: the log has its text. (uvicorn logs the traceback of an unexpected exception.)"""
    number = secrets.token_hex(4)
    trace = error.traceback_text if isinstance(error, StudioError) else ""
    log.error("error %s: %s", number, (trace or describe(error, _LONGEST)).rstrip())
    return HttpProblem(status, code, f"{what}; the server's log explains error {number}")


def _of_validation(found: Sequence[Any]) -> HttpProblem:
    """The problem of a body, query or path that does not have the declared form."""
    first = found[0]
    where = [str(part) for part in first["loc"] if part not in ("body", "query", "path", "header")]
    name = clean(".".join(where))[:100]
    if first["type"] in ("json_invalid", "json_type") or not name:
        return HttpProblem(400, "invalid_json", _NOT_JSON)
    if first["type"] == "missing":
        return HttpProblem(400, "missing_value", f"`{name}` is missing", param=name)
    if first["type"] == "extra_forbidden":
        return HttpProblem(400, "unknown_field", f"there is no field `{name}`", param=name)
    more = f"; {len(found) - 1} more values are wrong" if len(found) > 1 else ""
    given = first.get("input")
    shown = f" is {str(given)[:60]!r}" if isinstance(given, str | int | float) else ""
    return HttpProblem(400, "invalid_value", clean(f"`{name}`{shown}: {first['msg'][:200]}{more}"), param=name)


def clean(text: str) -> str:
    """At most 1,000 characters, without half characters, which UTF-8 cannot encode."""
    return text[:_LONGEST].encode("utf-8", "replace").decode()
