"""Requests made up from the OpenAPI description, by schemathesis: none may be answered by a failure of the server."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from prometheus_client.parser import text_string_to_metric_families
from schemathesis.generation import GenerationMode

from tests.studio.server.running_server import RunningServer

# With these a request that happens to be right is quick, too.
QUICK = {"/v1/images": {"model": "plain", "size": "8x8"}, "/v1/chat": {"max_tokens": 1, "max_completion_tokens": 1},
         "/v1/completions": {"max_tokens": 1}, "/v1/videos": {"model": "clip", "size": "16x8"},
         "/sdapi/v1/txt2img": {"width": 64, "height": 64, "steps": 1},
         "/sdapi/v1/img2img": {"width": 64, "height": 64, "steps": 1}}  # fmt: skip


def test_openapi_is_3_1_and_describes_each_interface(http: httpx.Client) -> None:
    found = http.get("/api/openapi.json").json()
    assert found["openapi"].startswith("3.1")
    assert {"/v1/models", "/api/jobs", "/sdapi/v1/txt2img"} <= found["paths"].keys()
    names = [each["operationId"] for path in found["paths"].values() for each in path.values()]
    assert len(names) == len(set(names))


def test_metrics_are_prometheuss(http: httpx.Client) -> None:
    http.post("/v1/images/generations", json={"model": "plain", "prompt": "x"})
    families = {each.name for each in text_string_to_metric_families(http.get("/metrics").text)}
    assert {"studio_requests", "studio_step_seconds", "studio_requests_unfinished"} <= families


@pytest.mark.slow
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["valid", "invalid"])
def test_no_request_makes_the_server_fail(server: RunningServer, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}/api/openapi.json")
    explored = 0
    for operation in schema.get_all_operations():
        with suppress(Unsatisfiable):  # what takes nothing can be asked nothing invalid
            explore(operation.ok(), server, mode)
            explored += 1
    assert explored > 20


def explore(operation: Any, server: RunningServer, mode: GenerationMode) -> None:
    quick = next((fields for prefix, fields in QUICK.items() if operation.path.startswith(prefix)), {})

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=15, deadline=None, phases=[Phase.generate], suppress_health_check=[*HealthCheck])
    def one(case: Any) -> None:
        if isinstance(case.body, dict):
            case.body = {**case.body, **quick}
        response = case.call(base_url=server.url, timeout=60)
        assert response.status_code < 500, (operation.method, operation.path, case.body, response.text)
        if response.status_code >= 400:
            assert "error" in json.loads(response.text)

    one()
