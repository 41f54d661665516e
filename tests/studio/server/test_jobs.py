"""Jobs over HTTP: added once, followed, interrupted connections, and everything that can be asked of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from studio.server.jobs import event_lines
from tests.studio.server.running_server import RunningServer, png, until

MISSING = {"sha256": "0" * 64, "media_type": "image/png"}


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def added(http: httpx.Client, generator: str, inputs: dict[str, Any], **more: Any) -> dict[str, Any]:
    answer = http.post("/api/jobs", json={"generator": generator, "inputs": inputs, **more})
    assert answer.status_code == 201, answer.text
    return answer.json()


def ended(http: httpx.Client, id: str) -> dict[str, Any]:
    until(lambda: http.get(f"/api/jobs/{id}").json()["ended"] is not None)
    return http.get(f"/api/jobs/{id}").json()


def events(text: str) -> list[tuple[int, str, dict[str, Any]]]:
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            found.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
    return found


def test_a_job_is_added_followed_and_fetched(server: RunningServer, http: httpx.Client) -> None:
    job = added(http, "plain", {"prompt": "x", "size": "24x16"}, seed=5)
    text = http.get(f"/api/jobs/{job['id']}/events").text
    numbers = [number for number, _, _ in events(text)]
    assert numbers == sorted(set(numbers))
    assert events(text)[-1][2]["state"] == "done"
    found = ended(http, job["id"])
    assert found["work"]["seed"] == 5
    file = http.get(found["artifacts"][0]["url"])
    assert file.headers["content-type"] == "image/png"
    assert str(server.studio.home) not in json.dumps(found) + text
    assert job["id"] in [each["id"] for each in http.get("/api/jobs?state=done").json()["jobs"]]


def test_events_go_on_after_a_lost_connection(http: httpx.Client) -> None:
    job = added(http, "plain", {"prompt": "y"})
    whole = events(http.get(f"/api/jobs/{job['id']}/events").text)
    middle = whole[len(whole) // 2][0]
    rest = events(http.get(f"/api/jobs/{job['id']}/events", headers={"Last-Event-ID": str(middle)}).text)
    assert [each for each in whole if each[0] > middle and each[1] == "state"] == [
        each for each in rest if each[1] == "state"
    ]
    assert all(number > middle for number, _, _ in rest)
    assert http.get(f"/api/jobs/{job['id']}/events", headers={"Last-Event-ID": "x"}).status_code == 400


def test_an_idempotency_key_adds_one_job(http: httpx.Client) -> None:
    key = {"Idempotency-Key": "order 66"}
    body = {"generator": "plain", "inputs": {"prompt": "x"}}
    one, two = (http.post("/api/jobs", json=body, headers=key).json() for _ in range(2))
    assert one["id"] == two["id"]
    other = http.post("/api/jobs", json={**body, "seed": 1}, headers=key)
    assert other.status_code == 400
    assert "idempotency key" in other.json()["error"]["message"]


def test_a_running_job_is_paused_resumed_moved_and_cancelled(http: httpx.Client) -> None:
    id = added(http, "endless", {"prompt": "x"})["id"]

    def state() -> str:
        return str(http.get(f"/api/jobs/{id}").json()["state"])

    until(lambda: state() == "running")
    http.post(f"/api/jobs/{id}/pause")
    until(lambda: state() == "paused")
    assert http.post(f"/api/jobs/{id}/move", json={"first": True}).status_code == 200
    http.post(f"/api/jobs/{id}/resume")
    until(lambda: state() == "running")
    http.post(f"/api/jobs/{id}/cancel")
    assert ended(http, id)["state"] == "cancelled"
    assert http.post(f"/api/jobs/{id}/pause").status_code == 400
    assert http.post(f"/api/jobs/{id}/retry").json()["state"] in ("queued", "running")
    http.post(f"/api/jobs/{id}/cancel")
    ended(http, id)


def test_an_uploaded_picture_is_an_input(http: httpx.Client) -> None:
    ref = http.post("/api/artifacts", files={"file": png("RGB", (8, 6), (1, 2, 3))}).json()
    found = ended(http, added(http, "plain", {"prompt": "x", "image": ref})["id"])
    assert found["artifacts"][0]["sha256"] == ref["sha256"]


WORKFLOW = """
inputs:
  word: {type: text, default: cat}
nodes:
  picture:
    use: plain
    inputs: {prompt: "${word}"}
outputs:
  picture: ${picture}
"""


def test_a_workflow_is_a_job(http: httpx.Client) -> None:
    answer = http.post("/api/jobs", json={"workflow": WORKFLOW, "inputs": {"word": "dog"}})
    assert answer.status_code == 201, answer.text
    found = ended(http, answer.json()["id"])
    assert (found["state"], [each["name"] for each in found["artifacts"]]) == ("done", ["picture"])


def test_a_workflow_of_a_client_opens_no_file(http: httpx.Client, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png("RGB", (8, 6), (1, 2, 3)))
    (tmp_path / "a.yaml").write_text(WORKFLOW)
    path = tmp_path / "a.png"
    literal = WORKFLOW.replace('"${word}"', f'"x", image: "{path}"')
    given = WORKFLOW.replace("type: text, default: cat", "type: image").replace('"${word}"', '"x", image: "${word}"')
    other = "nodes:\n  a:\n    workflow: " + str(tmp_path / "a.yaml") + "\noutputs:\n  a: ${a}\n"
    model = WORKFLOW.replace("use: plain", "use: image").replace('"${word}"', f'"x", model: "{tmp_path}"')
    for document, inputs in ((literal, {}), (given, {"word": str(path)}), (other, {}), (model, {})):
        answer = http.post("/api/jobs", json={"workflow": document, "inputs": inputs})
        if answer.status_code == 201:
            assert ended(http, answer.json()["id"])["state"] == "failed", document
        else:
            assert answer.status_code in (400, 404), answer.text


def test_a_failed_job_does_not_show_the_machine(http: httpx.Client) -> None:
    id = added(http, "failing", {"prompt": "x"})["id"]
    assert ended(http, id)["error"]["code"] == "generation_failed"
    assert "/home" not in http.get(f"/api/jobs/{id}").text + http.get(f"/api/jobs/{id}/events").text


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"generator": "nothing"}, 404),
        ({"generator": "plain"}, 400),
        ({"generator": "plain", "workflow": "x"}, 400),
        ({"generator": "plain", "inputs": {"prompt": "x"}, "destination": {"path": "/tmp/x"}}, 400),
        ({"generator": "plain", "inputs": {"prompt": "x"}, "stored": False}, 400),
        ({"generator": "plain", "inputs": {"prompt": "x", "image": "/etc/passwd"}}, 400),
        ({"generator": "image", "inputs": {"prompt": "x", "model": "/etc"}}, 404),
        ({"generator": "image", "inputs": {"prompt": "x", "lora": ["/etc"], "model": "smollm2"}}, 404),
        ({"generator": "plain", "inputs": {"prompt": "x", "image": MISSING}}, 404),
        ({"workflow": "nodes: ["}, 400),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused(http: httpx.Client, body: dict[str, Any], status: int) -> None:
    answer = http.post("/api/jobs", json=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]


def test_an_unknown_job_is_not_found(http: httpx.Client) -> None:
    for method, path in (("GET", ""), ("GET", "/events"), ("POST", "/cancel"), ("POST", "/pause"), ("POST", "/resume"),
                         ("POST", "/retry")):  # fmt: skip
        assert http.request(method, f"/api/jobs/nothing{path}").status_code == 404
    for path in ("", "/content"):
        assert http.get(f"/v1/videos/nothing{path}").status_code == 404


@pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")  # others still serve this interface
def test_videos(client: openai.OpenAI) -> None:
    made = client.videos.create_and_poll(model="clip", prompt="x", seconds="2", size="16x8", poll_interval_ms=50)
    assert (made.status, made.progress, made.size, made.seconds) == ("completed", 100, "16x8", "2")
    content = client.videos.download_content(made.id)
    assert content.response.headers["content-type"] == "video/mp4"
    assert content.content[4:8] == b"ftyp"
    again = client.videos.remix(made.id, prompt="y")
    assert (again.prompt, again.remixed_from_video_id) == ("y", made.id)
    assert {made.id, again.id} <= {each.id for each in client.videos.list()}
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve("nothing")


def test_what_n8n_sends_for_videos(http: httpx.Client) -> None:
    form = {"model": "clip", "prompt": "x", "seconds": "1", "size": "16x8"}
    answer = http.post(
        "/v1/videos", data=form, files={"input_reference": ("a.png", png("RGB", (16, 8), 0), "image/png")}
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers["openai-poll-after-ms"] == "1000"
    id = answer.json()["id"]
    until(lambda: http.get(f"/v1/videos/{id}").json()["status"] == "completed")
    assert http.get(f"/v1/videos/{id}/content").status_code == 200
    for wrong in ({"prompt": ""}, {"prompt": "x", "seconds": "0"}, {"prompt": "x", "size": "huge", "model": "clip"}):
        assert http.post("/v1/videos", data=wrong, files={"other": b""}).status_code == 400


@pytest.mark.parametrize("after", [2**63, 10**19])
def test_a_stream_of_events_ends_whatever_number_it_goes_on_from(http: httpx.Client, after: int) -> None:
    job = added(http, "plain", {"prompt": "x"})
    ended(http, job["id"])
    assert http.get(f"/api/jobs/{job['id']}/events?after={after}").text == ""
    assert http.get(f"/api/jobs/{job['id']}/events", headers={"Last-Event-ID": str(after)}).text == ""


def test_a_stream_of_events_ends_when_its_job_is_deleted(server: RunningServer, http: httpx.Client) -> None:
    job = added(http, "plain", {"prompt": "x"})
    ended(http, job["id"])
    lines = event_lines(server.jobs, job["id"], 0)

    async def read() -> list[str]:
        server.jobs.prune()
        return [line async for line in lines]

    assert asyncio.run(read()) == []


def test_the_failure_of_a_job_is_logged_once_under_one_number(
    http: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    job = added(http, "failing", {"prompt": "x"})
    messages = {ended(http, job["id"])["error"]["message"] for _ in range(3)}
    listed = [each for each in http.get("/api/jobs?state=failed").json()["jobs"] if each["id"] == job["id"]]
    [message] = messages | {each["error"]["message"] for each in listed}
    assert message.startswith("the job failed; the server's log explains error ")
    assert caplog.text.count(message[-8:]) <= 1  # another test may have caused the same
