"""Scripts as people write them for ComfyUI's API, with urllib and a websocket, against a real server."""

from __future__ import annotations

import io
import json
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import PIL.Image
import pytest
from starlette.websockets import WebSocket
from websockets.sync.client import ClientConnection, connect

import studio
from studio.server.comfy.sockets import Socket
from tests.studio.server.comfy.graphs import Graph, image_to_image, node, text_to_image
from tests.studio.server.running_server import RunningServer, running


def post(server: RunningServer, path: str, body: Any) -> dict[str, Any]:
    """As ComfyUI's own example does: urllib says that the body is a form."""
    request = urllib.request.Request(server.url + path, data=json.dumps(body).encode())
    with urllib.request.urlopen(request) as response:
        text = response.read()
    return json.loads(text) if text else {}


def get(server: RunningServer, path: str) -> Any:
    with urllib.request.urlopen(server.url + path) as response:
        return json.loads(response.read())


def refused(server: RunningServer, graph: Any) -> dict[str, Any]:
    with pytest.raises(urllib.error.HTTPError) as failure:
        post(server, "/prompt", {"prompt": graph})
    assert failure.value.code == 400
    return json.loads(failure.value.read())


def listening(server: RunningServer, client: str) -> ClientConnection:
    return connect(f"ws://127.0.0.1:{server.port}/ws?clientId={client}", open_timeout=60)


def messages(socket: ClientConnection, id: str) -> tuple[list[dict[str, Any]], list[bytes]]:
    """The messages about a prompt until it has ended, and the previews."""
    found: list[dict[str, Any]] = []
    previews: list[bytes] = []
    while True:
        text = socket.recv(timeout=120)
        if isinstance(text, bytes):
            previews.append(text)
            continue
        message = json.loads(text)
        if message["data"].get("prompt_id") == id:
            found.append(message)
            if message["type"] == "executing" and message["data"]["node"] is None:
                return found, previews


def run(server: RunningServer, graph: Graph) -> dict[str, Any]:
    """Run a graph, and return its item of the history."""
    client = uuid.uuid4().hex
    with listening(server, client) as socket:
        id = post(server, "/prompt", {"prompt": graph, "client_id": client})["prompt_id"]
        messages(socket, id)
    return get(server, f"/history/{id}")[id]


def pictures(server: RunningServer, item: dict[str, Any], node: str = "9") -> list[studio.Image]:
    found = []
    for each in item["outputs"][node]["images"]:
        with urllib.request.urlopen(f"{server.url}/view?{urllib.parse.urlencode(each)}") as response:
            assert response.headers["Content-Type"] == "image/png"
            found.append(studio.Image.decode(response.read()))
    return found


def test_a_script_with_a_websocket(server: RunningServer) -> None:
    with listening(server, "me") as socket:
        first = json.loads(socket.recv())
        assert first["type"] == "status"
        assert first["data"]["sid"] == "me"
        graph = text_to_image(steps=20)
        answer = post(server, "/prompt", {"prompt": graph, "client_id": "me", "prompt_id": "mine-1"})
        assert answer["prompt_id"] == "mine-1"
        assert answer["node_errors"] == {}
        found, previews = messages(socket, "mine-1")
    kinds = [each["type"] for each in found]
    assert kinds[:3] == ["execution_start", "execution_cached", "executing"]
    assert kinds.count("executed") == 1
    assert kinds[-4:] == ["executing", "executed", "execution_success", "executing"]
    assert found[2]["data"]["node"] == "3"
    progress = [each["data"] for each in found if each["type"] == "progress"]
    assert {(each["max"], each["node"]) for each in progress} == {(20, "3")}
    assert [each["value"] for each in progress] == sorted(each["value"] for each in progress)
    assert previews[0][:8] == b"\0\0\0\1\0\0\0\2"
    assert PIL.Image.open(io.BytesIO(previews[0][8:])).size == (64, 64)
    item = get(server, "/history/mine-1")["mine-1"]
    assert item["status"]["status_str"] == "success"
    assert item["status"]["completed"] is True
    kept = [kind for kind, _ in item["status"]["messages"]]
    assert kept == ["execution_start", "execution_cached", "execution_success"]
    assert item["prompt"][2] == graph
    [picture] = pictures(server, item)
    assert picture.recipe is not None
    assert picture.recipe.spec.seed == 7
    assert picture.recipe.spec.inputs["negative"] == ""
    inputs = {"prompt": "a red apple", "size": "64x64", "steps": 20, "guidance": 5.0, "sampler": "euler", "seed": 7}
    assert server.studio.image(**inputs).sha256 == picture.sha256


def test_a_batch_and_a_seed_of_64_bits(server: RunningServer) -> None:
    graph = text_to_image(seed=7 + (1 << 63) + (5 << 32), steps=1)
    graph["5"]["inputs"]["batch_size"] = 2
    one, two = pictures(server, run(server, graph))
    assert one.recipe is not None
    assert two.recipe is not None
    assert (one.recipe.spec.seed, two.recipe.spec.seed) == (7, 8)
    [alone] = pictures(server, run(server, text_to_image(steps=1)))
    assert np.abs(one.samples().astype(int) - alone.samples()).max() <= 2  # it was batched with the other
    assert np.abs(two.samples().astype(int) - alone.samples()).max() > 50


def upload(server: RunningServer, image: PIL.Image.Image, **fields: str) -> dict[str, Any]:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    response = httpx.post(f"{server.url}/api/upload/image", files={"image": ("../../a.png", buffer.getvalue())},
                          data={"type": "input", **fields})  # fmt: skip
    assert response.status_code == 200
    return response.json()


def test_an_uploaded_picture_is_changed(server: RunningServer) -> None:
    stored = upload(server, PIL.Image.new("RGB", (70, 64), "red"))
    assert stored["subfolder"] == ""
    graph = image_to_image(stored["name"], steps=1)
    graph["11"] = node("ImageScale", image=["10", 0], upscale_method="lanczos", width=96, height=64, crop="center")
    graph["5"]["inputs"]["pixels"] = ["11", 0]
    graph["12"] = node("PreviewImage", images=["11", 0])
    item = run(server, graph)
    [picture] = pictures(server, item)
    assert picture.size == (96, 64)
    assert picture.recipe is not None
    assert (picture.recipe.spec.inputs["steps"], picture.recipe.spec.inputs["strength"]) == (2, 0.5)
    assert item["outputs"]["12"]["images"][0]["type"] == "temp"
    [scaled] = pictures(server, item, "12")
    assert scaled.size == (96, 64)


def test_a_part_of_a_picture_is_repainted(server: RunningServer) -> None:
    image = PIL.Image.new("RGBA", (64, 64), (0, 0, 255, 255))
    image.paste((0, 0, 0, 0), (0, 0, 16, 64))
    graph = image_to_image(upload(server, image)["name"], steps=1, denoise=1)
    graph["5"] = node("VAEEncodeForInpaint", pixels=["10", 0], vae=["4", 2], mask=["10", 1], grow_mask_by=6)
    [picture] = pictures(server, run(server, graph))
    assert picture.pil.getpixel((40, 40)) == (0, 0, 255)
    assert picture.pil.getpixel((8, 40)) != (0, 0, 255)


def test_a_picture_is_refined_by_a_second_sampler(server: RunningServer) -> None:
    graph = text_to_image(steps=1)
    graph["20"] = node("ImageScale", image=["8", 0], upscale_method="area", width=96, height=96, crop="disabled")
    graph["21"] = node("VAEEncode", pixels=["20", 0], vae=["4", 2])
    graph["22"] = {**graph["3"], "inputs": {**graph["3"]["inputs"], "latent_image": ["21", 0], "denoise": 0.5}}
    graph["23"] = node("VAEDecode", samples=["22", 0], vae=["4", 2])
    graph["9"]["inputs"]["images"] = ["23", 0]
    [picture] = pictures(server, run(server, graph))
    assert picture.size == (96, 96)
    assert picture.recipe is not None
    assert picture.recipe.parents or "image" in picture.recipe.spec.inputs


def test_a_prompt_that_is_sent_again_after_a_restart_finds_its_jobs(tmp_path: Path) -> None:
    body = {"prompt": text_to_image(steps=1), "prompt_id": "again", "client_id": "me"}
    names = []
    for _ in range(2):
        with running(tmp_path) as server:
            with listening(server, "me") as socket:
                post(server, "/prompt", body)
                messages(socket, "again")
            names.append(get(server, "/history/again")["again"]["outputs"]["9"]["images"])
            assert [each.attempts for each in server.jobs.list()] == [1]
    assert names[0] == names[1]


def test_a_token_sees_only_its_own_prompts(guarded: RunningServer) -> None:
    mine, theirs = ({"Authorization": f"Bearer {guarded.tokens.create(name)}"} for name in ("mine", "theirs"))
    url = f"ws://127.0.0.1:{guarded.port}/ws?clientId=same"
    body = {"prompt": text_to_image(steps=1), "client_id": "same", "prompt_id": "private"}
    with (
        connect(url, additional_headers=mine, open_timeout=60) as one,
        connect(url, additional_headers=theirs, open_timeout=60) as two,
    ):
        assert httpx.post(f"{guarded.url}/prompt", json=body, headers=mine).status_code == 200
        messages(one, "private")
        with two:
            two.ping().wait(60)
        assert [json.loads(each)["type"] for each in two] == ["status"]
    for path in ("/history", "/history/private"):
        assert "private" in httpx.get(guarded.url + path, headers=mine).json()
        assert "private" not in httpx.get(guarded.url + path, headers=theirs).json()
    assert httpx.post(f"{guarded.url}/history", json={"clear": True}, headers=theirs).status_code == 200
    assert "private" in httpx.get(f"{guarded.url}/history", headers=mine).json()


@pytest.mark.parametrize(("message", "most"), [("x", 1000), (bytes(100 << 20), 3)])
def test_a_client_that_does_not_read_is_dropped(message: str | bytes, most: int) -> None:
    socket = Socket(WebSocket({"type": "websocket"}, receive=None, send=None), "local", "me")
    for _ in range(2000):
        socket.send(message)
    assert socket.slow
    assert socket.waiting < most


def test_a_script_that_gets_its_picture_through_the_websocket(server: RunningServer) -> None:
    graph = text_to_image(steps=1)
    graph["9"] = node("SaveImageWebsocket", images=["8", 0])
    found: list[bytes] = []
    current = ""
    with listening(server, "ws-images") as socket:
        id = post(server, "/prompt", {"prompt": graph, "client_id": "ws-images"})["prompt_id"]
        while current is not None:
            message = socket.recv(timeout=120)
            if isinstance(message, bytes):
                found += [message[8:]] if current == "9" else []
            elif (said := json.loads(message))["type"] == "executing" and said["data"]["prompt_id"] == id:
                current = said["data"]["node"]
    [data] = found
    picture = studio.Image.decode(data)
    assert picture.recipe is not None
    assert picture.recipe.spec.inputs["prompt"] == "a red apple"


def test_an_unknown_node_is_named(server: RunningServer) -> None:
    graph = text_to_image()
    graph["30"] = node("FreeU_V2", model=["4", 0], b1=1.3)
    body = refused(server, graph)
    assert body["error"]["type"] == "prompt_outputs_failed_validation"
    assert "FreeU_V2" in body["error"]["details"]
    assert body["node_errors"]["30"]["class_type"] == "FreeU_V2"


def test_a_failure_is_reported_without_paths(server: RunningServer) -> None:
    image = PIL.Image.new("RGBA", (64, 64), (0, 0, 255, 255))
    graph = image_to_image(upload(server, image)["name"], steps=1)
    graph["5"] = node("SetLatentNoiseMask", samples=["31", 0], mask=["10", 1])  # nothing is transparent
    graph["31"] = node("VAEEncode", pixels=["10", 0], vae=["4", 2])
    item = run(server, graph)
    assert item["status"]["status_str"] == "error"
    assert item["status"]["completed"] is False
    kind, data = item["status"]["messages"][-1]
    assert kind == "execution_error"
    assert (data["node_id"], data["node_type"]) == ("3", "KSampler")
    assert "black everywhere" in data["exception_message"]
    assert item["outputs"] == {}


def test_a_running_prompt_is_interrupted(server: RunningServer) -> None:
    with listening(server, "waiting") as socket:
        id = post(server, "/prompt", {"prompt": text_to_image(steps=900), "client_id": "waiting"})["prompt_id"]
        while json.loads(text if isinstance(text := socket.recv(), str) else "{}").get("type") != "progress":
            pass
        queue = get(server, "/queue")
        assert id in [each[1] for each in queue["queue_running"]]
        assert get(server, "/prompt")["exec_info"]["queue_remaining"] >= 1
        post(server, "/interrupt", {"prompt_id": id})
        found, _ = messages(socket, id)
    assert [each["type"] for each in found[-2:]] == ["execution_interrupted", "executing"]
    assert get(server, f"/history/{id}")[id]["status"]["status_str"] == "error"


def test_what_open_webui_asks(server: RunningServer) -> None:
    info = get(server, "/object_info")
    for kind, name in (("CheckpointLoaderSimple", "ckpt_name"), ("UNETLoader", "unet_name")):
        assert "image" in info[kind]["input"]["required"][name][0]
    bearer = {"Authorization": "Bearer none"}
    with listening(server, "webui") as socket:
        body = {"prompt": text_to_image(steps=1), "client_id": "webui"}
        id = httpx.post(f"{server.url}/prompt", json=body, headers=bearer).json()["prompt_id"]
        messages(socket, id)
    item = httpx.get(f"{server.url}/history/{id}", headers=bearer).json()
    file = item[id]["outputs"]["9"]["images"][0]
    assert httpx.get(f"{server.url}/view", params=file, headers=bearer).headers["Content-Type"] == "image/png"


def test_what_sillytavern_asks(server: RunningServer) -> None:
    stats = get(server, "/system_stats")
    assert stats["devices"][0]["type"] == "cpu"
    info = get(server, "/object_info")
    assert "euler" in info["KSampler"]["input"]["required"]["sampler_name"][0]
    assert "normal" in info["KSampler"]["input"]["required"]["scheduler"][0]
    assert "image" in info["VAELoader"]["input"]["required"]["vae_name"][0]
    text = json.dumps({"prompt": text_to_image(steps=1)})
    response = httpx.post(f"{server.url}/prompt", content=text, headers={"Content-Type": "text/plain;charset=UTF-8"})
    id = response.json()["prompt_id"]
    while id not in (history := get(server, "/history")):
        pass
    assert history[id]["status"]["status_str"] == "success"
    assert isinstance(history[id]["status"]["messages"], list)
    assert httpx.post(f"{server.url}/interrupt").status_code == 200
    post(server, "/history", {"delete": [id]})
    assert id not in get(server, "/history")


def test_a_prompt_is_accepted_once(server: RunningServer) -> None:
    body = {"prompt": text_to_image(steps=1), "prompt_id": "once"}
    assert post(server, "/api/prompt", body) == post(server, "/prompt", body)
    other = httpx.post(f"{server.url}/prompt", json={**body, "prompt": text_to_image(steps=2)})
    assert other.status_code == 400
    assert "another graph" in other.json()["error"]["message"]


@pytest.mark.parametrize("name", ["../../tokens.json", "/etc/passwd", "a.png", "0" * 64 + ".png", "%2e%2e", "", "\0"])
def test_names_of_files_lead_nowhere(server: RunningServer, name: str) -> None:
    response = httpx.get(f"{server.url}/view", params={"filename": name, "subfolder": "..", "type": "output"})
    assert response.status_code == 404
    body = refused(server, image_to_image(name))
    assert body["node_errors"]["10"]["errors"][0]["message"] == "Invalid image file"


def test_a_mask_is_uploaded(server: RunningServer) -> None:
    original = upload(server, PIL.Image.new("RGB", (8, 8), "red"))
    buffer = io.BytesIO()
    PIL.Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(buffer, "PNG")
    reference = json.dumps({"filename": original["name"], "subfolder": "", "type": "input"})
    response = httpx.post(f"{server.url}/upload/mask", files={"image": ("m.png", buffer.getvalue())},
                          data={"original_ref": reference, "type": "input"})  # fmt: skip
    stored = httpx.get(f"{server.url}/view", params={"filename": response.json()["name"]})
    assert PIL.Image.open(io.BytesIO(stored.content)).getpixel((0, 0)) == (255, 0, 0, 0)
    wrong = httpx.get(f"{server.url}/view", params={"filename": original["name"], "preview": "jpeg;" + "8" * 9000})
    assert wrong.headers["Content-Type"] == "image/jpeg"
    small = httpx.get(f"{server.url}/view", params={"filename": response.json()["name"], "preview": "webp;80"})
    assert small.headers["Content-Type"] == "image/webp"
