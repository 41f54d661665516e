"""A diffusers pipeline as a plugin. It shows `load`, and the drawbacks of the simple form.

The U-Net has random weights from a fixed seed, so that nothing has to be downloaded; to use trained weights, list
their files in `weights` and read them in `load`. The pipeline runs its own loop, so the host sees one long step:
it cannot be cancelled within, batched or resumed. `studio.PipelineGenerator` runs the same pipeline step by step (see
docs/plugins.md).
"""

from __future__ import annotations

from typing import Any

import studio

studio_api = 1
_SIDE = 16  # pixels


class PixelPipeline(studio.Generator):
    """Generate a small picture with a diffusers pipeline."""

    name = "pixel-pipeline"
    output = studio.Image

    class Inputs(studio.Inputs):
        steps: int = studio.field(8, ge=1, le=1000, help="denoising steps", aliases=("num_inference_steps",))
        eta: float = studio.field(0.0, ge=0, le=1, help="new noise at each step; 0 is DDIM, 1 is DDPM")

    def load(self, ref: studio.ModelRef, device: str, dtype: str) -> Any:
        import torch
        from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            unet = UNet2DModel(
                sample_size=_SIDE, in_channels=3, out_channels=3, block_out_channels=(16, 32), layers_per_block=1,
                norm_num_groups=8, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            )  # fmt: skip
        pipeline = DDIMPipeline(unet.eval(), DDIMScheduler()).to(device, getattr(torch, dtype))
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def generate(self, model: Any, inputs: Any, rng: studio.Rng) -> studio.Image:
        made = model(generator=rng.torch, num_inference_steps=inputs.steps, eta=inputs.eta)
        return studio.Image(made.images[0])

    def facts(self, model: Any, inputs: Any) -> dict[str, Any]:
        return {"sampler": type(model.scheduler).__name__}


@studio.hookimpl
def studio_generators() -> list[studio.Generator]:
    return [PixelPipeline()]
