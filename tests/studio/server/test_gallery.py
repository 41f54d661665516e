"""The list of outputs, a generator's description, and copies to share, over HTTP."""

from __future__ import annotations

import httpx
import PIL.Image

import studio
from studio.recipe import MediaRef
from tests.studio.server.running_server import RunningServer, until


def made(http: httpx.Client, prompt: str, seed: int) -> str:
    body = {"generator": "plain", "inputs": {"prompt": prompt, "steps": 7}, "seed": seed}
    job = http.post("/api/jobs", json=body).json()["id"]
    until(lambda: http.get(f"/api/jobs/{job}").json()["state"] == "done")
    return str(http.get(f"/api/jobs/{job}").json()["artifacts"][0]["sha256"])


def test_outputs_are_listed_by_time_in_pages(server: RunningServer, http: httpx.Client) -> None:
    ids = [made(http, f"the {word} one", 900 + at) for at, word in enumerate(("first", "second", "third"))]
    uploaded = server.studio.store.put(studio.Image(PIL.Image.new("RGB", (9, 9), "blue"))).sha256
    found, before = [], ""
    while True:
        page = http.get(f"/api/artifacts?limit=2{before}").json()
        found += page["artifacts"]
        if page["next"] is None:
            break
        before = f"&before={page['next']}"
    listed = [each["sha256"] for each in found]
    assert [each for each in listed if each in ids] == [*reversed(dict.fromkeys(ids))]
    assert len(listed) == len(set(listed))
    assert uploaded not in listed
    newest = next(each for each in found if each["sha256"] == ids[-1])
    assert (newest["title"], newest["generator"], newest["media_type"]) == ("the third one", "plain", "image/png")
    assert all(each["media_type"] == "image/png" for each in http.get("/api/artifacts?kind=image").json()["artifacts"])
    assert ids[0] not in str(http.get("/api/artifacts?kind=audio").json())


def test_a_damaged_recipe_costs_only_its_title(server: RunningServer, http: httpx.Client) -> None:
    id = made(http, "to be damaged", 950)
    path = server.studio.store.path(id)
    assert path is not None
    path.with_suffix(".json").write_text("{")
    assert next(each for each in http.get("/api/artifacts").json()["artifacts"] if each["sha256"] == id)["title"] == ""
    path.with_suffix(".json").unlink()


def test_wrong_questions_are_refused(http: httpx.Client) -> None:
    for query, status in (("kind=painting", 404), ("limit=0", 400), ("limit=501", 400), ("before=../x", 400)):
        assert http.get(f"/api/artifacts?{query}").status_code == status, query


def test_a_copy_to_share_lacks_the_prompt(http: httpx.Client) -> None:
    id = made(http, "a secret wish", 960)
    assert b"a secret wish" in http.get(f"/api/artifacts/{id}").content
    copy = http.get(f"/api/artifacts/{id}/share")
    assert copy.headers["content-disposition"] == f'attachment; filename="{id[:16]}.png"'
    assert b"a secret wish" not in copy.content
    assert studio.Image.decode(copy.content).ref == MediaRef(sha256=id, media_type="image/png")
    assert http.get(f"/api/artifacts/{'0' * 64}/share").status_code == 404


def test_a_generator_is_described_for_a_form(http: httpx.Client) -> None:
    found = {each["name"]: each for each in http.get("/api/generators").json()["generators"]}
    assert found["plain"]["required"] == ["prompt"]
    described = http.get("/api/generators/plain").json()
    assert described["models"] == []
    assert described["inputs"]["properties"]["steps"]["maximum"] == 100
