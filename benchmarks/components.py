"""Memory of large pipelines by component: SDXL- and FLUX-shaped ones with random weights, at 60% of their size.

    python benchmarks/components.py             # both shapes; lines of JSON to standard output
    python benchmarks/components.py --tiny      # every line of it at tiny sizes

For each shape and budget a process of its own makes pictures, one after another and two at once. `peak` is how far the
process's resident memory rose above that before the model was loaded, in MiB, for each turn. `weights` is the size of
all weights, and `largest` of the largest component: moving whole components, as `enable_model_cpu_offload` of diffusers
does, needs at least that and the activations of a step. `counted` is the most that the ledger held. `same` says whether
all pictures equal those without a budget.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import studio
from studio.devices import torch_setup
from studio.devices.memory import ResidentMemoryProbe, trim
from studio.engine.memory.ledger import weight_bytes

MIB = 1 << 20
PROMPTS = ["a red boat", "two cats", "a house by the sea", "a tree", "a green car"]
LETTERS = "abcdefghijklmnopqrstuvwxyz "


class Pictures(studio.PipelineGenerator):
    """Draw with the pipeline in the folder of this benchmark."""

    name, output = "components", studio.Image

    class Inputs(studio.Inputs):
        model: str = studio.model_field("the folder of a pipeline")
        prompt: str = studio.field(help="prompt")
        steps: int = studio.field(4, ge=1, le=50, help="denoising steps")
        side: int = studio.field(256, ge=16, le=2048, help="width and height in pixels")

    def arguments(self, model: Any, inputs: Inputs) -> Mapping[str, Any]:
        return {"prompt": inputs.prompt, "num_inference_steps": inputs.steps, "width": inputs.side,
                "height": inputs.side}  # fmt: skip


@studio.hookimpl
def studio_generators() -> list[studio.Generator]:
    return [Pictures()]


def clip(width: int, layers: int, projection: bool = False) -> tuple[Any, Any]:
    """A text encoder of CLIP, and a tokenizer of letters."""
    import transformers

    words = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{each}</w>" for each in LETTERS)]
    config = transformers.CLIPTextConfig(
        vocab_size=len(words), hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=width // 16, projection_dim=width, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    tokenizer = transformers.CLIPTokenizer(
        vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77, unk_token="<|endoftext|>"
    )
    return kind(config), tokenizer


def t5(width: int, layers: int) -> tuple[Any, Any]:
    """A text encoder of T5, and a tokenizer of letters."""
    import transformers

    words = ["<pad>", "</s>", "<unk>", "▁", *LETTERS.strip()]
    config = transformers.T5Config(
        vocab_size=len(words), d_model=width, d_kv=16, d_ff=4 * width, num_layers=layers, num_heads=width // 16,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    pieces = [(word, 0.0 if i < 3 else -2.0 - i / 10) for i, word in enumerate(words)]
    return transformers.T5EncoderModel(config), transformers.T5Tokenizer(vocab=pieces, extra_ids=0)


def vae(width: int, channels: int) -> Any:
    import diffusers

    return diffusers.AutoencoderKL(
        block_out_channels=(width, 2 * width, 4 * width, 4 * width), layers_per_block=2, latent_channels=channels,
        shift_factor=0.1,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip


def sdxl(tiny: bool) -> Any:
    """Stable Diffusion XL at a fifth of its widths."""
    import diffusers

    width, layers = (32, 1) if tiny else (64, 8)
    (one, words), (two, more) = clip(32 if tiny else 160, 12), clip(64 if tiny else 256, 32, projection=True)
    hidden, pooled = one.config.hidden_size + two.config.hidden_size, two.config.hidden_size
    net = diffusers.UNet2DConditionModel(
        sample_size=32, block_out_channels=(width, 2 * width, 4 * width), layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=hidden,
        transformer_layers_per_block=(1, min(2, layers), layers), attention_head_dim=(2, 4, 8),
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=6 * 32 + pooled,
    )  # fmt: skip
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(32, 4), text_encoder=one, text_encoder_2=two, tokenizer=words, tokenizer_2=more, unet=net,
        scheduler=diffusers.EulerDiscreteScheduler(timestep_spacing="leading"), add_watermarker=False,
    )  # fmt: skip


def flux(tiny: bool) -> Any:
    """FLUX.1 at a twelfth of its width, with all its blocks."""
    import diffusers

    (one, words), (two, more) = clip(32 if tiny else 160, 12), t5(64 if tiny else 320, 4 if tiny else 24)
    net = diffusers.FluxTransformer2DModel(
        in_channels=64, num_layers=2 if tiny else 19, num_single_layers=4 if tiny else 38, attention_head_dim=64,
        num_attention_heads=1 if tiny else 4, joint_attention_dim=two.config.d_model, guidance_embeds=True,
        pooled_projection_dim=one.config.hidden_size, axes_dims_rope=(16, 24, 24),
    )  # fmt: skip
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=vae(32, 16), text_encoder=one, tokenizer=words,
        text_encoder_2=two, tokenizer_2=more, transformer=net,
    )  # fmt: skip


SHAPES = {"sdxl": sdxl, "flux": flux}


def draw(folder: Path, warm: Path, tiny: bool, memory: int | None) -> dict[str, Any]:
    """In a process of its own: make three pictures one after another, then two at once."""
    probe = ResidentMemoryProbe()
    with tempfile.TemporaryDirectory() as home:
        ask(Path(home) / "warm", warm, None, probe, ["a"], {"steps": 1, "side": 64})
        asked = {"steps": 2 if tiny else 6, "side": 64 if tiny else 256}
        return ask(Path(home), folder, memory, probe, PROMPTS, asked)


def ask(
    home: Path, folder: Path, memory: int | None, probe: ResidentMemoryProbe, prompts: list[str], asked: dict[str, int]
) -> dict[str, Any]:
    """Make a picture of each prompt, the last two at once."""
    gc.collect()
    trim()
    before = probe.resident() or 0
    found: dict[str, Any] = {"seconds": [], "peak": [], "pictures": []}
    with studio.Studio(home=home, device="cpu", dtype="float32", memory=memory, plugins=[__file__]) as host:
        for turn in (*([each] for each in prompts[:-2]), prompts[-2:]):
            now = probe.resident() or 0
            probe.begin()
            begun = time.perf_counter()
            tickets = [
                host.submit("components", model=str(folder), seed=i, prompt=each, **asked)
                for i, each in enumerate(turn)
            ]  # fmt: skip
            made = [ticket.result() for ticket in tickets]
            found["seconds"].append(round(time.perf_counter() - begun, 2))
            found["peak"].append(round((now - before + (probe.peak() or 0)) / MIB))
            found["pictures"] += [hashlib.sha256(each.pil.tobytes()).hexdigest() for each in made]
        found["counted"] = round(host.router.engines[0].ledger.most_used / MIB)
    return found


def measure(shape: str, tiny: bool) -> None:
    """Write a pipeline to a folder, and draw with it with and without a budget."""
    with tempfile.TemporaryDirectory() as place:
        folders = [Path(place) / name for name in ("model", "warm")]
        for folder, small in zip(folders, (tiny, True), strict=True):
            SHAPES[shape](small).save_pretrained(folder)
        sizes = {path.name: weight_bytes(path.glob("*.safetensors"), "float32") for path in folders[0].iterdir()}
        total, largest = sum(sizes.values()), max(sizes.values())
        facts = {"shape": shape, "weights": round(total / MIB), "largest": round(largest / MIB)}
        reference = None
        for share in (None, 0.6, 0.35):
            room = 24 * MIB if tiny else 0  # what a step needs does not shrink with the weights
            memory = None if share is None else int(share * total) + room
            more = ["--memory", str(memory)] if memory else []
            done = subprocess.run(
                [sys.executable, __file__, "--draw", *map(str, folders), *more, *["--tiny"] * tiny],
                check=True, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            found = json.loads(done.stdout.splitlines()[-1])
            pictures = found.pop("pictures")
            reference = reference or pictures
            budget = "none" if memory is None else round(memory / MIB)
            print(json.dumps({**facts, "budget": budget, **found, "same": pictures == reference}), flush=True)


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=[*SHAPES], default=[*SHAPES], help="which pipelines")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to see that every line of it runs")
    parser.add_argument("--draw", nargs=2, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch_setup.prepare()
    if given.draw:
        print(json.dumps(draw(*given.draw, given.tiny, given.memory)))
        return
    for shape in given.shapes:
        measure(shape, given.tiny)


if __name__ == "__main__":
    main()
