"""Graphs with downloaded models and a LoRA, by the names of their files: a tiny Stable Diffusion."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import PIL.Image
import pytest

from studio.models import Models
from tests.studio.diffusion import whole
from tests.studio.diffusion.test_additions import SD, save_lora
from tests.studio.server.comfy.graphs import Graph, node, text_to_image
from tests.studio.server.comfy.test_scripts import get, pictures, refused, run, upload
from tests.studio.server.running_server import RunningServer, running

pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config`")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    home, folder = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("models")
    whole.save(SD, folder / "tiny-sd")
    lora = save_lora(folder, SD, 1).rename(folder / "style.safetensors")
    whole.diffusers.ControlNetModel(
        block_out_channels=(32, 64), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), layers_per_block=1,
        attention_head_dim=8, norm_num_groups=8, conditioning_embedding_out_channels=(16, 32), cross_attention_dim=32,
    ).save_pretrained(folder / "edges")  # fmt: skip
    for path in (folder / "tiny-sd", lora, folder / "edges"):
        Models(home).pull(f"file:{path}")
    with running(home) as server:
        yield server


def graph(**sampler: object) -> Graph:
    found = text_to_image(**{"scheduler": "karras", "sampler_name": "dpmpp_2m", "steps": 3, **sampler})
    found["4"]["inputs"]["ckpt_name"] = "tiny-sd"
    found["10"] = node("LoraLoaderModelOnly", model=["4", 0], lora_name="style.safetensors", strength_model=0.7)
    found["11"] = node("CLIPSetLastLayer", clip=["4", 1], stop_at_clip_layer=-2)
    found["3"]["inputs"]["model"] = ["10", 0]
    for id in ("6", "7"):
        found[id]["inputs"]["clip"] = ["11", 0]
    return found


def test_models_are_listed_by_the_names_of_their_files(served: RunningServer, tmp_path: Path) -> None:
    info = get(served, "/object_info")
    assert info["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"][0] == ["image", "tiny-sd"]
    assert info["LoraLoader"]["input"]["required"]["lora_name"][0] == ["edges", "style.safetensors"]
    assert str(tmp_path.parent) not in str(info)


def test_a_lora_a_skipped_layer_and_a_sampler_reach_the_pipeline(served: RunningServer) -> None:
    [picture] = pictures(served, run(served, graph()))
    folder, lora = (next(name for name in Models(served.studio.home).entries() if part in name)
                    for part in ("tiny-sd", "style"))  # fmt: skip
    same = served.studio.image("a red apple", model=folder, lora=[f"{lora}:0.7"], clip_skip=1, steps=3, guidance=5.0,
                               sampler="dpmpp-2m-karras", size="64x64", seed=7)  # fmt: skip
    assert picture.sha256 == same.sha256
    plain = graph()
    plain["3"]["inputs"]["model"] = ["4", 0]
    assert pictures(served, run(served, plain))[0].sha256 != same.sha256


@pytest.mark.parametrize("advanced", [True, False])
def test_a_controlnet_reaches_the_pipeline(served: RunningServer, advanced: bool) -> None:
    stored = upload(served, PIL.Image.new("RGB", (64, 64), "white"))
    changed = graph(steps=2, scheduler="normal")
    changed["20"] = node("ControlNetLoader", control_net_name="edges")
    changed["21"] = node("LoadImage", image=stored["name"])
    links = {"control_net": ["20", 0], "image": ["21", 0], "strength": 0.5}
    changed["22"] = node("ControlNetApply", conditioning=["6", 0], **links)
    if advanced:
        both = {"positive": ["6", 0], "negative": ["7", 0], "start_percent": 0, "end_percent": 1.0}
        changed["22"] = node("ControlNetApplyAdvanced", **both, **links)
        changed["3"]["inputs"]["negative"] = ["22", 1]
    changed["3"]["inputs"]["positive"] = ["22", 0]
    [picture] = pictures(served, run(served, changed))
    assert picture.recipe is not None
    assert [each.kind for each in picture.recipe.spec.model.additions] == ["lora", "controlnet"]
    assert picture.recipe.spec.inputs["control_scale"] == [0.5]
    if advanced:
        changed["3"]["inputs"]["negative"] = ["7", 0]
        assert [*refused(served, changed)["node_errors"]] == ["3"]


def test_a_sampler_that_the_pipeline_cannot_have_is_refused_when_it_is_loaded(served: RunningServer) -> None:
    item = run(served, graph(sampler_name="ddim"))
    kind, data = item["status"]["messages"][-1]
    assert kind == "execution_error"
    assert "`ddim-karras` does not fit" in data["exception_message"]


def test_parts_of_another_model_are_refused(served: RunningServer) -> None:
    wrong = graph()
    wrong["8"]["inputs"]["vae"] = ["12", 0]
    wrong["12"] = node("VAELoader", vae_name="image")
    assert [*refused(served, wrong)["node_errors"]] == ["8"]
    wrong = graph()
    wrong["11"]["inputs"]["clip"] = ["13", 0]
    wrong["13"] = node("CLIPLoader", clip_name="image", type="stable_diffusion")
    assert [*refused(served, wrong)["node_errors"]] == ["3"]
