"""Stock video pipelines, tiny and random, of the real classes: as the pipelines themselves make it, step by step."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import studio
from studio.engine import Engine, Request
from studio.errors import InputError, WeightsError
from studio.recipe import PluginRef
from studio.testing import check
from studio.testing.fake_gpu import FakeGpu
from studio_video.video import VideoGenerator

WORDS = ["<pad>", "</s>", "<unk>", "▁a", "▁dog", "▁cat", *"▁abcdefghijklmnopqrstuvwxyz"]
SMALL = {"prompt": "a dog", "negative": "a cat", "frames": 9, "size": "64x64", "steps": 3, "guidance": 4, "fps": 12}


def text(kind: str = "T5") -> dict[str, Any]:
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(WORDS), d_model=32, d_ff=37, d_kv=8, num_heads=4, num_layers=2, pad_token_id=0, eos_token_id=1
    )
    tokenizer = transformers.T5Tokenizer(vocab=[(word, -float(i)) for i, word in enumerate(WORDS)], extra_ids=0)
    return {"text_encoder": getattr(transformers, f"{kind}EncoderModel")(config).eval(), "tokenizer": tokenizer}


def ltx() -> Any:
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 5, decoder_inject_noise=(False,) * 5,
        spatio_temporal_scaling=(True, True, False, False), patch_size=1, patch_size_t=1,
        decoder_spatio_temporal_scaling=(True, True, False, False), upsample_residual=(False,) * 4,
        upsample_factor=(1,) * 4,
    )  # fmt: skip
    net = diffusers.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=4, attention_head_dim=8, cross_attention_dim=32,
        num_layers=1, caption_channels=32,
    )  # fmt: skip
    return diffusers.LTXPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=vae.eval(), transformer=net.eval(), **text()
    )


def wan(picture: bool = False) -> Any:
    vae = diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    net = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=36 if picture else 16,
        out_channels=16, text_dim=32, freq_dim=16, ffn_dim=32, num_layers=1, rope_max_seq_len=32,
        image_dim=4 if picture else None,
    )  # fmt: skip
    parts: dict[str, Any] = {"vae": vae.eval(), "transformer": net.eval(), **text("UMT5"),
                             "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)}  # fmt: skip
    if not picture:
        return diffusers.WanPipeline(**parts)
    eye = transformers.CLIPVisionConfig(
        hidden_size=4, projection_dim=4, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4,
        intermediate_size=16,
    )  # fmt: skip
    return diffusers.WanImageToVideoPipeline(
        image_encoder=transformers.CLIPVisionModel(eye).eval(),
        image_processor=transformers.CLIPImageProcessor(size=8, crop_size=8),
        **parts,
    )


def cog(picture: bool = False) -> Any:
    vae = diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2,
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
    )  # fmt: skip
    net = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=8 if picture else 4, out_channels=4, time_embed_dim=2,
        text_embed_dim=32, num_layers=1, sample_width=8, sample_height=8, sample_frames=9, max_text_seq_length=226,
    )  # fmt: skip
    scheduler = diffusers.CogVideoXDDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=False, timestep_spacing="trailing", clip_sample=False
    )
    pipeline = diffusers.CogVideoXImageToVideoPipeline if picture else diffusers.CogVideoXPipeline
    return pipeline(scheduler=scheduler, vae=vae.eval(), transformer=net.eval(), **text())


FAMILIES: dict[str, Callable[[], Any]] = {"ltx": ltx, "wan": wan, "cog": cog}
FROM_PICTURES: dict[str, Callable[[], Any]] = {"wan-image": partial(wan, True), "cog-image": partial(cog, True)}


@pytest.fixture(scope="module")
def pipes() -> dict[str, Any]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return {name: build() for name, build in (FAMILIES | FROM_PICTURES).items()}


@pytest.fixture(scope="module")
def folders(pipes: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {name: tmp_path_factory.mktemp(name) / "pipeline" for name in pipes}
    for name, pipe in pipes.items():
        pipe.save_pretrained(made[name])
    return made


def run(folder: Path, seed: int = 4, **inputs: Any) -> Any:
    generator = VideoGenerator(folder)
    parsed = generator.Inputs.parse(SMALL | inputs)
    with torch.inference_mode():
        model = generator.load(studio.ModelRef(), "cpu", "float32")
        state: Any = generator.start(model, parsed, studio.Rng(seed))
        while not state.done:
            (state,) = generator.step(model, [state])
        return generator.finish(model, state), generator.preview(model, state), state


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_stock_pipeline(pipes: dict[str, Any], folders: dict[str, Path], family: str) -> None:
    ours, preview, _ = run(folders[family])
    assert np.abs(ours.frames.astype(int) - by_itself(pipes[family], family)).max() <= 1
    assert preview is not None
    assert preview.size == (64, 64)


def by_itself(pipe: Any, family: str, frames: int = 9, **more: Any) -> np.ndarray:
    """The frames of the pipeline's own loop, as whole numbers."""
    pipe.set_progress_bar_config(disable=True)
    more |= {"frame_rate": 12} if family == "ltx" else {}
    (made,) = pipe(
        prompt="a dog", negative_prompt="a cat", width=64, height=64, num_frames=frames, num_inference_steps=3,
        guidance_scale=4.0, generator=torch.Generator().manual_seed(4), output_type="np", **more,
    ).frames  # fmt: skip
    assert np.asarray(made).shape == (frames, 64, 64, 3)
    return (np.asarray(made) * 255).round().astype(int)


@pytest.mark.parametrize("family", ["ltx", *FROM_PICTURES])
def test_equals_the_stock_pipeline_from_a_picture(pipes: dict[str, Any], folders: dict[str, Path], family: str) -> None:
    pixels = np.random.default_rng(2).integers(0, 255, (64, 64, 3), np.uint8)
    frames = 9 if family == "cog-image" else 5  # CogVideoX's VAE makes eight of two latent frames
    ours, preview, _ = run(folders[family], frames=frames, image=studio.Image.from_array(pixels))
    pipe = pipes[family]
    if family == "ltx":
        pipe = diffusers.LTXImageToVideoPipeline.from_pipe(pipe)
    stock = by_itself(pipe, family, frames, image=PIL.Image.fromarray(pixels))
    assert np.abs(ours.frames.astype(int) - stock).max() <= 1
    assert preview is not None


def test_it_conforms(folders: dict[str, Path]) -> None:
    check(VideoGenerator(folders["ltx"]), SMALL | {"guidance": 1.0}).raise_if_failed()


def test_a_clip_is_as_long_as_asked_and_begins_with_its_picture(folders: dict[str, Path]) -> None:
    red = studio.Image(PIL.Image.new("RGB", (64, 64), (250, 0, 0)))
    video, _, state = run(folders["ltx"], frames=6, image=red)
    assert len(video.frames) == 6
    assert state.guest.arguments["num_frames"] == 9
    plain, _, _ = run(folders["ltx"], frames=6)
    assert not np.array_equal(video.frames, plain.frames)


def test_what_a_pipeline_does_not_take_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    red = studio.Image(PIL.Image.new("RGB", (64, 64), (250, 0, 0)))
    with pytest.raises(InputError, match="does not accept a picture"):
        run(folders["wan"], image=red)
    with pytest.raises(InputError, match="a `WanImageToVideoPipeline` needs a picture"):
        run(folders["wan-image"])
    with pytest.raises(InputError, match="`loop` is not supported by"):
        run(folders["ltx"], loop=True)
    with pytest.raises(InputError, match="rejects the request"):
        run(folders["ltx"], size="80x64")
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(WeightsError, match="is not JSON"):
        VideoGenerator(tmp_path).load(studio.ModelRef(), "cpu", "float32")


def test_sides_that_wan_rounds_down_are_refused(folders: dict[str, Path]) -> None:
    """Its pipeline would make 64x64 of 72x64 without a word."""
    with pytest.raises(InputError, match="`size` is 80x64; this model needs multiples of") as raised:
        with_patches_of(folders["wan"], 4, size="80x64")
    assert "give each side as a multiple of 32" in str(raised.value)


def with_patches_of(folder: Path, patch: int, **inputs: Any) -> Any:
    """Start a clip with a net whose patches are `patch` latents wide."""
    generator = VideoGenerator(folder)
    with torch.inference_mode():
        model: Any = generator.load(studio.ModelRef(), "cpu", "float32")
        model.pipe.transformer.register_to_config(patch_size=(1, patch, patch))
        return generator.start(model, generator.Inputs.parse(SMALL | inputs), studio.Rng(4))


@pytest.mark.parametrize("part", ["text_encoder", "transformer", "vae"])
def test_weights_that_are_not_finite_end_the_request_and_are_named(
    folders: dict[str, Path], tmp_path: Path, part: str
) -> None:
    folder = Path(shutil.copytree(folders["wan"], tmp_path / "wan"))
    (file,) = (folder / part).glob("*.safetensors")
    tensors = load_file(file)
    name = next(each for each in sorted(tensors) if "encoder" not in each or part == "text_encoder")
    tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    generator = VideoGenerator(folder)
    with Engine("cpu", "float32") as engine:
        request = Request.of(generator, generator.Inputs.parse(SMALL), 4, PluginRef(name="test", version="1"))
        with pytest.raises(WeightsError, match="has NaN or infinity in float32"):
            engine.submit(request).result(500)


def test_every_component_is_on_the_device_in_the_dtype(folders: dict[str, Path]) -> None:
    with FakeGpu.installed(), torch.inference_mode():
        model = VideoGenerator(folders["wan-image"]).load(studio.ModelRef(), "gpu:0", "bfloat16")
        for name, part in model.pipe.components.items():
            if isinstance(part, torch.nn.Module):
                found = {each.device.type for each in part.parameters()}
                assert found == {torch.device("gpu:0").type}, name
