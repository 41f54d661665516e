"""What graphs stand for, and what is refused, with the node and the input."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import studio
from studio.server.comfy.graph import PromptRefused
from studio.server.comfy.nodes import NODES
from studio.server.comfy.pixels import grown
from studio.server.comfy.sampling import strength
from studio.server.comfy.scene import file_name
from tests.studio.server.comfy.conftest import Compile
from tests.studio.server.comfy.graphs import Graph, image_to_image, node, text_to_image


@pytest.fixture(scope="session")
def uploaded(host: studio.Studio) -> str:
    image = PIL.Image.new("RGBA", (90, 66), (255, 0, 0, 255))
    image.paste((0, 255, 0, 0), (0, 0, 20, 66))
    made = studio.Image(image)
    host.store.put(made)
    return file_name(made.sha256)


def refused(compiled: Compile, graph: Any) -> dict[str, list[tuple[str, str | None]]]:
    """The kinds of problems and the inputs, by node."""
    with pytest.raises(PromptRefused) as failure:
        compiled(graph)
    body = failure.value.to_json()
    assert body["error"]["type"]
    return {
        id: [(each["type"], each["extra_info"].get("input_name")) for each in found["errors"]]
        for id, found in body["node_errors"].items()
    }


def changed(graph: Graph, path: str, value: Any) -> Graph:
    id, name = path.split(".")
    graph = copy.deepcopy(graph)
    graph[id]["inputs"][name] = value
    return graph


def test_the_default_graph(compiled: Compile) -> None:
    made = compiled(text_to_image())
    [render] = made.renders
    assert render.values == {"prompt": "a red apple", "steps": 2, "guidance": 5.0, "sampler": "euler", "seed": 7,
                             "size": "64x64"}  # fmt: skip
    assert render.choice.name == "image"
    assert [(each.node, each.folder, each.picture.render) for each in made.saved] == [("9", "output", render)]


def test_the_same_graph_with_loaders_of_parts(compiled: Compile) -> None:
    graph = text_to_image()
    graph["4"] = node("UNETLoader", unet_name="image", weight_dtype="default")
    graph["40"] = node("DualCLIPLoader", clip_name1="image", clip_name2="image", type="flux")
    graph["41"] = node("VAELoader", vae_name="image")
    for path, link in (("6.clip", ["40", 0]), ("7.clip", ["40", 0]), ("8.vae", ["41", 0])):
        graph = changed(graph, path, link)
    graph["5"]["class_type"] = "EmptySD3LatentImage"
    assert compiled(graph).renders[0].values == compiled(text_to_image()).renders[0].values


def test_a_picture_is_encoded_in_multiples_of_8(compiled: Compile, uploaded: str) -> None:
    with pytest.raises(PromptRefused) as failure:  # the starter needs multiples of 32
        compiled(image_to_image(uploaded))
    [problem] = failure.value.to_json()["node_errors"]["5"]["errors"]
    assert problem["extra_info"]["input_name"] == "pixels"
    assert "88x64" in problem["message"]
    graph = image_to_image(uploaded)
    graph["5"] = node("SetLatentNoiseMask", samples=["50", 0], mask=["10", 1])
    graph["50"] = node("VAEEncode", pixels=["51", 0], vae=["4", 2])
    graph["51"] = node("ImageScale", image=["10", 0], upscale_method="area", width=64, height=64, crop="disabled")
    values = compiled(graph).renders[0].values
    assert values["image"].size == values["mask"].size == (64, 64)
    assert values["image"].mode == "RGB"
    assert values["mask"].pil.getpixel((0, 0)) == 255
    assert values["mask"].pil.getpixel((63, 0)) == 0


def test_steps_and_strength(compiled: Compile, uploaded: str) -> None:
    graph = image_to_image(uploaded, steps=20, denoise=0.4)
    graph["11"] = node("ImageScale", image=["10", 0], upscale_method="lanczos", width=64, height=0, crop="disabled")
    graph["12"] = node("ImageScale", image=["11", 0], upscale_method="bicubic", width=64, height=64, crop="center")
    graph = changed(graph, "5.pixels", ["12", 0])
    values = compiled(graph).renders[0].values
    assert (values["steps"], values["strength"]) == (50, 0.4)
    advanced = node("KSamplerAdvanced", add_noise="enable", noise_seed=3, steps=20, cfg=1, sampler_name="dpmpp_2m",
                    scheduler="simple", start_at_step=5, end_at_step=10000, return_with_leftover_noise="disable",
                    **{name: graph["3"]["inputs"][name]
                       for name in ("model", "positive", "negative", "latent_image")})  # fmt: skip
    values = compiled({**graph, "3": advanced}).renders[0].values
    assert (values["steps"], values["strength"], values["seed"], values["sampler"]) == (20, 0.75, 3, "dpmpp-2m")


@given(st.integers(1, 1000), st.floats(0.01, 1))
def test_as_many_steps_run_as_in_comfyui(steps: int, denoise: float) -> None:
    whole = int(steps / denoise)
    found = strength(whole, steps)
    assert int(whole * found) == steps == round(whole * found)
    assert 0 < found <= 1


def test_loras_and_clip_skip_reach_the_generator(compiled: Compile) -> None:
    graph = text_to_image()
    graph["60"] = node("LoraLoader", model=["4", 0], clip=["4", 1], lora_name="words", strength_model=0.8,
                       strength_clip=0.8)  # fmt: skip
    graph["61"] = node("LoraLoaderModelOnly", model=["60", 0], lora_name="style", strength_model=1)
    graph["62"] = node("CLIPSetLastLayer", clip=["60", 1], stop_at_clip_layer=-2)
    for path, link in (("3.model", ["61", 0]), ("6.clip", ["62", 0]), ("7.clip", ["62", 0])):
        graph = changed(graph, path, link)
    with pytest.raises(PromptRefused) as failure:
        compiled(graph)
    assert "`lora` needs a model of diffusers" in str(failure.value.to_json())  # the starter is none
    assert "3" in refused(compiled, changed(graph, "60.strength_clip", 0.5))
    with pytest.raises(PromptRefused) as failure:
        compiled(changed(graph, "61.lora_name", "words"))
    assert "text encoders" in str(failure.value.to_json())


@pytest.mark.parametrize(
    ("path", "value", "kind", "input"),
    [
        ("4.ckpt_name", "sdxl.safetensors", "value_not_in_list", "ckpt_name"),
        ("4.ckpt_name", "/etc/passwd", "value_not_in_list", "ckpt_name"),
        ("4.ckpt_name", 5, "invalid_input_type", "ckpt_name"),
        ("3.steps", 0, "value_smaller_than_min", "steps"),
        ("3.steps", 20_000, "value_bigger_than_max", "steps"),
        ("3.steps", "many", "invalid_input_type", "steps"),
        ("3.steps", ["6", 0], "invalid_input_type", "steps"),
        ("3.steps", 2.5, "invalid_input_type", "steps"),
        ("3.cfg", 50, "custom_validation_failed", "cfg"),
        ("3.seed", -1, "value_smaller_than_min", "seed"),
        ("3.denoise", 0, "custom_validation_failed", "denoise"),
        ("3.denoise", 0.5, "custom_validation_failed", "denoise"),
        ("3.sampler_name", "euler_cfg_pp", "value_not_in_list", "sampler_name"),
        ("3.sampler_name", "heun", "custom_validation_failed", "sampler_name"),
        ("3.scheduler", "karras", "custom_validation_failed", "scheduler"),
        ("3.model", "image", "bad_linked_input", "model"),
        ("3.model", ["99", 0], "bad_linked_input", "model"),
        ("3.model", ["4", 7], "bad_linked_input", "model"),
        ("3.model", ["4", -1], "bad_linked_input", "model"),
        ("3.model", ["4", 1], "return_type_mismatch", "model"),
        ("3.model", [[["4"]]], "invalid_input_type", "model"),
        ("3.model", {"a": 1}, "invalid_input_type", "model"),
        ("3.latent_image", ["3", 0], "dependency_cycle", "latent_image"),
        ("3.freeu", 1, "unknown_input", "freeu"),
        ("6.text", " ", "custom_validation_failed", "positive"),
        ("6.text", "x" * 40_000, "invalid_input_type", "text"),
        ("5.width", 100, "custom_validation_failed", "width"),
        ("5.batch_size", 5, "custom_validation_failed", "latent_image"),
        ("8.samples", ["5", 0], "custom_validation_failed", "samples"),
    ],
)
def test_a_wrong_input_is_named(compiled: Compile, path: str, value: Any, kind: str, input: str) -> None:
    found = [
        each for problems in refused(compiled, changed(text_to_image(), path, value)).values() for each in problems
    ]
    assert (kind, input) in found


def test_samplers_that_fit_are_named(compiled: Compile) -> None:
    with pytest.raises(PromptRefused) as failure:
        compiled(text_to_image(sampler_name="dpmpp_2m", scheduler="karras"))
    details = failure.value.to_json()["node_errors"]["3"]["errors"][0]["details"]
    assert details == "samplers: euler, dpmpp_2m; schedulers: normal, sgm_uniform, simple"


@pytest.mark.parametrize(
    "graph", [{}, {"1": 1}, {"1": {}}, {"1": {"class_type": 3}}, {"1": {"class_type": "SaveImage", "inputs": []}},
              {str(i): node("EmptyLatentImage") for i in range(501)}, {"x" * 200: node("SaveImage")},
              {"5": text_to_image()["5"]}],
)  # fmt: skip
def test_damaged_graphs_are_refused(compiled: Compile, graph: Any) -> None:
    refused(compiled, graph)


def test_a_long_chain_is_refused(compiled: Compile, uploaded: str) -> None:
    scale = {"upscale_method": "area", "width": 8, "height": 8, "crop": "disabled"}
    graph = {str(i): node("ImageScale", image=[str(i + 1), 0], **scale) for i in range(1, 200)}
    graph["200"] = node("LoadImage", image=uploaded)
    graph["0"] = node("SaveImage", images=["1", 0], filename_prefix="x")
    with pytest.raises(PromptRefused) as failure:
        compiled(graph)
    assert "More than 100 nodes in a row" in str(failure.value.to_json())


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
_LINKS = st.lists(st.sampled_from(["1", "2", "3", 0, 1, -1]), max_size=3)
_NODES = st.sampled_from(sorted(NODES)).flatmap(
    lambda kind: st.fixed_dictionaries(
        {},
        optional={
            port.name: _LINKS | _SCALARS | st.sampled_from([*port.choices, "image", 64]) for port in NODES[kind].inputs
        },
    ).map(lambda inputs: {"class_type": kind, "inputs": inputs})
)


@settings(max_examples=100)
@given(graph=st.dictionaries(st.sampled_from(["1", "2", "3", "4"]), _NODES | _SCALARS, max_size=4))
def test_any_graph_compiles_or_is_refused(compiled: Compile, graph: Any) -> None:
    try:
        made = compiled(graph)
    except PromptRefused as refusal:
        json.dumps(refusal.to_json(), allow_nan=False)
    else:
        assert made.saved


@pytest.mark.parametrize("by", [0, 1, 2, 3, 6, 7])
def test_a_mask_grows_as_in_comfyui(by: int) -> None:
    mask = np.zeros((20, 24), np.uint8)
    mask[9, 11] = mask[0, 23] = 200
    found = grown(studio.Image.from_array(mask), by).samples() == 255
    hard = torch.from_numpy(mask / 255).round().float()[None, None]
    if by:  # the reference: VAEEncodeForInpaint of ComfyUI convolves with ones
        padding = -(-(by - 1) // 2)
        hard = torch.nn.functional.conv2d(hard, torch.ones(1, 1, by, by), padding=padding).clamp(0, 1).round()
    assert (found == hard[0, 0, :20, :24].numpy().astype(bool)).all()


@pytest.mark.parametrize("seed", [7, (1 << 32) - 1, (1 << 40) + 7, (1 << 64) - 1])
def test_the_noise_is_comfyuis(host: studio.Studio, compiled: Compile, seed: int) -> None:
    values = compiled(text_to_image(seed=seed)).renders[0].values
    ours = torch.randn(4, 8, 8, generator=studio.Rng(values["seed"]).torch)
    theirs = torch.randn([1, 4, 8, 8], generator=torch.manual_seed(seed), device="cpu")
    assert torch.equal(ours[None], theirs)
