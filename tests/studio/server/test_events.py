"""The stream of all jobs: what it begins with, changes, progress, and what follows a lost connection."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx

from tests.studio.server.running_server import until


def messages(response: httpx.Response) -> Iterator[tuple[str, str, dict[str, Any]]]:
    fields: dict[str, str] = {}
    for line in response.iter_lines():
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "data" in fields:
            yield fields.get("id", ""), fields["event"], json.loads(fields["data"])
            fields = {}


def added(http: httpx.Client, generator: str, **more: Any) -> str:
    answer = http.post("/api/jobs", json={"generator": generator, "inputs": {"prompt": "x"}, **more})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def test_it_tells_of_a_new_job_until_its_end(http: httpx.Client) -> None:
    before = added(http, "plain")
    until(lambda: http.get(f"/api/jobs/{before}").json()["state"] == "done")
    with http.stream("GET", "/api/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        heard = messages(response)
        _, event, data = next(heard)
        assert event == "jobs"
        assert {each["id"]: each["state"] for each in data["jobs"]}[before] == "done"
        job = added(http, "plain")
        for _, event, data in heard:
            if event == "job" and data["id"] == job and data["state"] == "done":
                break
        assert data["artifacts"][0]["url"].startswith("/api/artifacts/")


def test_progress_goes_on_after_a_lost_connection(http: httpx.Client) -> None:
    job = added(http, "endless", preview_every=0)

    def heard_from(last: str, wanted: int) -> tuple[str, list[int]]:
        found: list[int] = []
        with http.stream("GET", "/api/events", headers={"Last-Event-ID": last}) as response:
            for id, event, data in messages(response):
                if event == "progress" and data["job"] == job and data["type"] == "progress":
                    found.append(data["position"])
                    if len(found) == wanted:
                        return id, found
        raise AssertionError("the stream has ended")

    last, first = heard_from("", 3)
    assert last.startswith(f"{job}:")
    _, second = heard_from(last, 2)
    assert min(second) > max(first)
    http.post(f"/api/jobs/{job}/cancel", json={})
    until(lambda: http.get(f"/api/jobs/{job}").json()["state"] == "cancelled")


def test_deleted_jobs_are_gone(server, http: httpx.Client) -> None:
    job = added(http, "plain")
    until(lambda: http.get(f"/api/jobs/{job}").json()["state"] == "done")
    with http.stream("GET", "/api/events") as response:
        heard = messages(response)
        next(heard)
        server.jobs.prune()
        assert next(data for _, event, data in heard if event == "gone")["jobs"].count(job) == 1


def test_a_wrong_cursor_is_refused(http: httpx.Client) -> None:
    for cursor in ("x", "a:1,", "a:1;b:2", "a:-1", "../x:1", "a" * 5000):
        response = http.get("/api/events", headers={"Last-Event-ID": cursor})
        assert response.status_code == 400
        assert "Last-Event-ID" in response.json()["error"]["message"]
