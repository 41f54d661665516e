"""Speed of pictures and clips on a GPU: U-Nets by width, with and without graphs, and requests that share steps."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gpu_parts.bench import PLUGIN, Bench, Found, generators, ms
from studio.devices.graphs import Graphs
from studio.engine import Engine, Request
from studio.testing.subject import Subject
from studio_diffusion.image import ImageGenerator

ASKS = ((20, 5.0), (12, 3.0), (28, 7.5), (16, 4.0), (24, 1.5), (20, 6.0), (14, 2.5), (26, 8.0))  # steps and guidance


def unet(bench: Bench, found: Found) -> None:
    """The U-Net of Stable Diffusion 1.5 (860 M, random), two samples a picture: by memory format and width."""
    net, side, wide = _unet(bench), bench.of(64, 8), bench.of(768, 32)
    graphs = Graphs(bench.device, net)
    for layout in (torch.contiguous_format, torch.channels_last):
        net.to(memory_format=layout)
        for width in bench.of((1, 2, 4, 8, 16), (1, 2)):
            x = bench.randn(2 * width, 4, side, side).to(memory_format=layout)
            words, t = bench.randn(2 * width, 77, wide), torch.ones(2 * width, device=bench.device.name)
            work = partial(graphs.run, "unet", partial(_said, net), [x, t, words])
            with torch.inference_mode():
                found[f"{str(layout).partition('.')[2]}_{width}"] = bench.with_and_without_graphs(work, 6)
    found["not_recorded"] = bench.device.not_recorded


def sdxl(bench: Bench, found: Found) -> None:
    """The U-Net of Stable Diffusion XL (2.6 G parameters, random) at 1024x1024, two samples a picture: by width."""
    from diffusers import UNet2DConditionModel

    side, wide, pooled = bench.of(128, 8), bench.of(2048, 32), bench.of(1280, 32)
    sizes = {"block_out_channels": bench.of((320, 640, 1280), (32, 32, 64)), "norm_num_groups": bench.of(32, 8),
             "transformer_layers_per_block": bench.of((1, 2, 10), (1, 1, 1)), "sample_size": side,
             "attention_head_dim": bench.of((5, 10, 20), (2, 2, 2)), "cross_attention_dim": wide,
             "addition_time_embed_dim": bench.of(256, 8),
             "projection_class_embeddings_input_dim": pooled + 6 * bench.of(256, 8)}  # fmt: skip
    torch.manual_seed(0)
    with torch.device(bench.device.name):
        net = UNet2DConditionModel(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), addition_embed_type="text_time",
            use_linear_projection=True, **sizes,
        ).to(bench.dtype).eval().requires_grad_(False)  # fmt: skip
    found["gb"] = round(sum(each.nbytes for each in net.parameters()) / 1e9, 2)
    for width in bench.of((1, 2, 4, 8), (1, 2)):
        x, words = bench.randn(2 * width, 4, side, side), bench.randn(2 * width, 77, wide)
        more = {"text_embeds": bench.randn(2 * width, pooled), "time_ids": bench.randn(2 * width, 6)}
        with torch.inference_mode():
            work = partial(net, x, torch.ones(2 * width, device=bench.device.name), words, added_cond_kwargs=more)
            found[f"width_{width}_s"] = [round(bench.seconds(work), 4) for _ in range(3)]


def _said(net: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
    said: torch.Tensor = net(*inputs).sample
    return said


def _unet(bench: Bench) -> nn.Module:
    from diffusers import UNet2DConditionModel

    tiny = {"block_out_channels": (32, 64), "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "norm_num_groups": 8}  # fmt: skip
    torch.manual_seed(0)
    with torch.device(bench.device.name):
        net = UNet2DConditionModel(sample_size=bench.of(64, 8), cross_attention_dim=bench.of(768, 32),
                                   **bench.of({}, tiny))  # fmt: skip
    made: nn.Module = net.to(bench.dtype).eval().requires_grad_(False)
    return made


def pictures(bench: Bench, found: Found) -> None:
    """Eight pictures of Stable Diffusion's size (random weights) with unlike steps and guidance: at once, and by stock
    diffusers one after another.
    """
    from diffusers import StableDiffusionPipeline

    with tempfile.TemporaryDirectory() as folder:
        _stable_diffusion(bench, Path(folder))
        pipe = StableDiffusionPipeline.from_pretrained(f"{folder}/model", dtype=bench.dtype).to(bench.device.name)
        pipe.set_progress_bar_config(disable=True)
        found["stock_s"] = [round(bench.seconds(partial(_by_stock, bench, pipe)), 3) for _ in range(2)]
        del pipe
        generator, side = ImageGenerator(Path(folder) / "model"), bench.of(512, 64)
        with Engine(bench.device.name) as engine:
            found["at_once_s"] = [_at_once(bench, engine, generator, side) for _ in range(bench.of(4, 1))]
    found["times_stock"] = round(min(found["stock_s"]) / min(found["at_once_s"]), 2)


def _by_stock(bench: Bench, pipe: Any) -> None:
    """One after another, by diffusers."""
    side = bench.of(512, 64)
    for seed, (count, guidance) in enumerate(bench.of(ASKS, ASKS[:2])):
        rng = torch.Generator().manual_seed(seed)
        pipe("a red apple", side, side, num_inference_steps=bench.of(count, 2), guidance_scale=guidance, generator=rng)


def _at_once(bench: Bench, engine: Engine, generator: ImageGenerator, side: int) -> float:
    """Seconds until all pictures that are asked for are there."""
    begun = time.perf_counter()
    tickets = []
    for seed, (count, guidance) in enumerate(bench.of(ASKS, ASKS[:2])):
        inputs = generator.Inputs(prompt="a red apple", steps=bench.of(count, 2), guidance=guidance,
                                  size=f"{side}x{side}")  # fmt: skip
        tickets.append(engine.submit(Request.of(generator, inputs, seed=seed, plugin=PLUGIN)))
    for ticket in tickets:
        ticket.result(300)
    return round(time.perf_counter() - begun, 3)


def _stable_diffusion(bench: Bench, folder: Path) -> None:
    """A folder in the stock layout, with the U-Net, VAE and text encoder of version 1.5 in size."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    sys.path.append(str(Path(__file__).parents[2]))  # for `recipes`, which is not installed
    from recipes.text import tokenizer
    from studio_diffusion import export

    tokenizer.train(["a red apple", "octopus"] * 3, folder / "tokenizer", context=77)
    size = len(json.loads((folder / "tokenizer" / "vocab.json").read_text("utf-8")))
    blocks, channels = bench.of(4, 2), bench.of((128, 256, 512, 512), (16, 32))
    with torch.device(bench.device.name):
        text_encoder = CLIPTextModel(CLIPTextConfig(
            vocab_size=size, hidden_size=bench.of(768, 32), intermediate_size=bench.of(3072, 64),
            num_hidden_layers=bench.of(12, 2), num_attention_heads=bench.of(12, 2), bos_token_id=size - 2,
            eos_token_id=size - 1, pad_token_id=size - 1,
        ))  # fmt: skip
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks,
            block_out_channels=channels, layers_per_block=2, latent_channels=4, norm_num_groups=bench.of(32, 4),
            sample_size=bench.of(512, 16),
        )  # fmt: skip
    made = [each.to(bench.dtype) for each in (vae, _unet(bench), text_encoder)]
    export.save(folder / "model", *made, folder / "tokenizer")


def steps(bench: Bench, found: Found) -> None:
    """A step of the starters of pictures and clips, as the engine makes it, by width."""
    known = generators()
    cases: dict[str, tuple[dict[str, object], tuple[int, ...]]] = {
        "image": ({"prompt": "a cat", "steps": 50}, (1, 4, 16, 64)), "ddpm": ({"steps": 50}, (1, 16)),
        "video": ({"prompt": "a cat", "frames": 16, "steps": 50}, (1, 4)),
    }  # fmt: skip
    for name, (given, widths) in bench.of(cases, {"image": ({"prompt": "a cat", "steps": 50}, (1, 2))}).items():
        subject = Subject(known[name], given, bench.device.name, bench.device.fast_dtype())
        for width in widths:
            states = [subject.start(seed) for seed in range(width)]
            found[f"{name}_{width}"] = bench.with_and_without_graphs(partial(subject.step, states), 8)
        found["not_recorded"] = bench.device.not_recorded


def together(bench: Bench, found: Found) -> None:
    """Eight pictures of the starter with unlike steps and guidance, at once; and a text beside a running clip."""
    with Engine(bench.device.name) as engine:  # widths are learned in the first round
        found["at_once_s"] = [_at_once(bench, engine, ImageGenerator(), 128) for _ in range(bench.of(4, 1))]
    with bench.host() as host:
        clip = {"prompt": "a horse bouncing", "frames": bench.of(32, 8), "steps": bench.of(100, 2)}
        host.generate("text", prompt="an apple", max_tokens=4)
        running = host.submit("video", seed=1, priority="background", stored=False, **clip)
        times = [time.perf_counter() for _ in host.stream("text", prompt="an apple", max_tokens=bench.of(200, 8))]
        gaps = sorted(after - before for before, after in pairwise(times))
        running.result(200)
        found["token_beside_clip"] = {"median": ms(gaps), "p99": round(gaps[int(len(gaps) * 0.99)] * 1e3, 3)}
