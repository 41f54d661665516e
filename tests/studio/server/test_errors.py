"""What a client is told of each kind of error, and in which form."""

from __future__ import annotations

import httpx
import pytest

from studio import errors
from studio.server.errors import Answers, native, problem_of
from studio.server.openai.shape import error_body


@pytest.mark.parametrize(
    ("error", "status", "retry"),
    [
        (errors.Busy("full"), 429, True),
        (errors.InputError("steps", "`steps` is 0"), 400, False),
        (errors.UnknownName("generator", "imge", ["image"]), 404, False),
        (errors.ModelError("not downloaded"), 404, False),
        (errors.MediaError("damaged"), 400, False),
        (errors.Cancelled("x"), 409, False),
        (errors.EngineClosed("/home/x"), 503, False),
        (errors.TimedOut("image", "/home/x"), 504, False),
        (errors.OutOfMemory("image", "/home/x"), 500, False),
        (errors.StoreError("cannot write `/home/x`"), 500, False),
        (errors.WeightsError("/home/x", "`/home/x` is damaged"), 500, False),
        (RuntimeError("/home/x"), 500, False),
    ],
)
def test_each_error_has_a_status_and_no_path(error: Exception, status: int, retry: bool) -> None:
    problem = problem_of(error)
    assert (problem.status, problem.retry) == (status, retry)
    assert "/home" not in problem.message
    response = Answers({"/v1": error_body}).response("/v1/models", problem)
    assert response.headers["x-should-retry"] == str(retry).lower()
    assert ("retry-after" in response.headers) is retry


def test_half_characters_can_be_sent() -> None:
    problem = problem_of(errors.InputError("prompt", "`prompt` is \ud800"))
    assert Answers().response("/api", problem).body
    assert native(problem)["error"]["field"] == "prompt"


def test_a_route_that_is_not_there_is_named(http: httpx.Client) -> None:
    for method, path, status in (
        ("POST", "/v1/responses", 404),
        ("DELETE", "/v1/models", 405),
        ("GET", "/nothing", 404),
    ):
        response = http.request(method, path)
        assert response.status_code == status
        assert f"`{method} {path}`" in response.json()["error"]["message"]
