"""The interface of Stable Diffusion WebUI, as SillyTavern, LibreChat, Open WebUI and Blender add-ons use it."""

from __future__ import annotations

import base64
import io
import json
import threading
from typing import Any

import httpx
import PIL.Image
import pytest

from tests.studio.server.running_server import RunningServer, png, unfinished, until

WITH_PLAIN = {"override_settings": {"sd_model_checkpoint": "plain"}}


def pictures(answer: httpx.Response) -> list[PIL.Image.Image]:
    assert answer.status_code == 200, answer.text
    return [PIL.Image.open(io.BytesIO(base64.b64decode(each))) for each in answer.json()["images"]]


def test_what_sillytavern_asks_first(http: httpx.Client) -> None:
    for path, field in (("sd-models", "title"), ("samplers", "name"), ("schedulers", "name"), ("upscalers", "name"),
                        ("latent-upscale-modes", "name")):  # fmt: skip
        assert all(each[field] for each in http.get(f"/sdapi/v1/{path}").json()), path
    assert http.get("/sdapi/v1/sd-vae").json() == http.get("/sdapi/v1/sd-modules").json() == []
    names = [each["name"] for each in http.get("/sdapi/v1/samplers").json()]
    assert {"Euler", "DPM++ 2M"} <= set(names)


@pytest.mark.slow
def test_what_sillytavern_sends_to_draw(http: httpx.Client) -> None:
    body = {"prompt": "a red apple", "negative_prompt": "", "sampler_name": "Euler", "scheduler": "automatic",
            "steps": 2, "cfg_scale": 4, "width": 64, "height": 64, "restore_faces": False, "enable_hr": False,
            "seed": 5, "override_settings": {"CLIP_stop_at_last_layers": 1}, "send_images": True}  # fmt: skip
    answer = http.post("/sdapi/v1/txt2img", json=body)
    assert [each.size for each in pictures(answer)] == [(64, 64)]
    info = json.loads(answer.json()["info"])
    assert (info["seed"], info["steps"], info["cfg_scale"]) == (5, 2, 4)
    assert "Steps: 2, Sampler: Euler, CFG scale: 4, Seed: 5" in info["infotexts"][0]


def test_options_choose_the_model(http: httpx.Client) -> None:
    before = http.get("/sdapi/v1/options").json()["sd_model_checkpoint"]
    try:
        assert http.post("/sdapi/v1/options", json={"sd_model_checkpoint": "plain", "other": 1}).status_code == 200
        assert http.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == "plain"
        body = {"prompt": "x", "width": 24, "height": 16, "batch_size": 2, "n_iter": 2, "negative_prompt": "y"}
        answer = http.post("/sdapi/v1/txt2img", json=body, auth=("anyone", "anything"))  # as Open WebUI and LibreChat
        assert [each.size for each in pictures(answer)] == [(24, 16)] * 4
        assert len(set(json.loads(answer.json()["info"])["all_seeds"])) == 4
    finally:
        http.post("/sdapi/v1/options", json={"sd_model_checkpoint": before})
    assert http.post("/sdapi/v1/options", json={"sd_model_checkpoint": "none"}).status_code == 404


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
def test_img2img(http: httpx.Client, prefix: str) -> None:
    image = prefix + base64.b64encode(png("RGB", (8, 6), (1, 2, 3))).decode()
    body = {"prompt": "x", "init_images": [image], "denoising_strength": 0.4, "seed": -1, **WITH_PLAIN}
    assert pictures(http.post("/sdapi/v1/img2img", json=body))[0].getpixel((0, 0)) == (1, 2, 3)
    mask = base64.b64encode(png("L", (4, 3), 255)).decode()
    body = {**body, "mask": mask, "inpainting_mask_invert": 1}
    made = pictures(http.post("/sdapi/v1/img2img", json=body))[0]
    assert (made.size, made.convert("L").getextrema()) == ((8, 6), (0, 0))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"prompt": "x", "batch_size": 10_000}, "the limit is 10"),
        ({"prompt": "x", "sampler_name": "Magic"}, "no sampler is called `Magic`"),
        ({"prompt": "x", "enable_hr": True}, "`enable_hr` is not supported"),
        ({"prompt": "x", "alwayson_scripts": {"controlnet": {"args": [{"image": "x"}]}}}, "controlnet"),
        ({"prompt": "x", "override_settings": {"sd_model_checkpoint": "/etc/passwd"}}, "no model is called"),
        ({"prompt": "x", "steps": 0}, "`steps`"),
        ({"prompt": ""}, "`prompt`"),
        ({"prompt": "x", "width": 65, "height": 65}, "`size`"),
        ({"prompt": "x", "init_images": []}, "has 0 images"),
        ({"prompt": "x", "init_images": ["/etc/passwd"]}, "`init_images`"),
        ({"prompt": "x", "init_images": ["http://127.0.0.1:1/x.png"]}, "does not fetch"),
        ({"prompt": "x", "init_images": ["AAAA"]}, "the picture is"),
    ],
)
def test_what_is_wrong_is_said_in_the_webuis_form(http: httpx.Client, body: dict[str, Any], said: str) -> None:
    path = "img2img" if "init_images" in body else "txt2img"
    answer = http.post(f"/sdapi/v1/{path}", json=body)
    assert answer.status_code in (400, 404), answer.text
    assert said in answer.json()["detail"]


def test_progress_and_interruption(server: RunningServer, http: httpx.Client) -> None:
    until(lambda: unfinished(server) == 0)
    assert http.get("/sdapi/v1/progress").json()["state"]["job_count"] == 0
    answers: list[httpx.Response] = []
    body = {"prompt": "x", "override_settings": {"sd_model_checkpoint": "endless"}}

    def draw() -> None:
        answers.append(httpx.post(f"{server.url}/sdapi/v1/txt2img", json=body, timeout=60))

    drawing = threading.Thread(target=draw)
    drawing.start()
    until(lambda: http.get("/sdapi/v1/progress").json()["state"]["sampling_step"] > 0)
    found = http.get("/sdapi/v1/progress").json()
    assert 0 < found["progress"] < 1
    assert found["state"]["job_count"] == 1
    assert http.post("/sdapi/v1/interrupt").status_code == 200
    drawing.join(60)
    assert (answers[0].status_code, answers[0].json()["error"]) == (409, "cancelled")
    assert http.get("/sdapi/v1/progress").json()["progress"] == 0
