"""The generator `image`: text-to-image, by default with the starter weights of the plugin.

Also image-to-image (`image`, `strength`), inpainting (`mask`, `box`) and outpainting (`extend`); see edit.py. Studio's
own models (`starter`) and pipelines of diffusers (`stock`) are distinguished by their noise schedule. Importing this
loads no torch; `load` does.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import studio
from studio.diffusion.layout import only_file, tensors_of
from studio.errors import WeightsError
from studio.loaders import read_config
from studio_diffusion.inputs import ImageInputs

if TYPE_CHECKING:
    from studio.diffusion.stepping import GuestState, PipelineModel
    from studio_diffusion.latent import LatentDiffusion
    from studio_diffusion.starter import ImageState

    Model: TypeAlias = LatentDiffusion | PipelineModel
    State: TypeAlias = ImageState | GuestState

STARTER = Path(__file__).parent / "weights" / "starter"
COMPONENTS = ("model_index.json", "tokenizer", "text_encoder", "unet", "vae", "scheduler")


class ImageGenerator(studio.PipelineGenerator):
    """Generate a picture from a prompt by latent diffusion."""

    name = "image"
    output = studio.Image
    version = "5"
    max_batch: ClassVar[int] = 8
    streams: ClassVar[bool] = True
    Inputs = ImageInputs

    def __init__(self, folder: Path = STARTER) -> None:
        """`folder`, in the layout of diffusers' `StableDiffusionPipeline`, is the default model."""
        self.folder = folder

    def weights(self, ref: studio.ModelRef) -> list[Path]:
        """The model's safetensors and configs. Raises WeightsError if a component is missing."""
        folder = self._folder(ref)
        if not is_own(folder):
            return super().weights(ref)
        for part in COMPONENTS:
            if not (folder / part).exists():
                reason = f"`{folder}` is not an image model: it has no `{part}`"
                raise WeightsError(folder / part, reason, hint="use a folder from `studio train image`")
        nets = [file for part in ("text_encoder", "unet", "vae") for file in tensors_of(folder / part)]
        return [*nets, *sorted(folder.glob("*/*config.json"))]  # configs affect the picture too

    def load(self, ref: studio.ModelRef, device: str, dtype: str) -> Model:  # type: ignore[override]
        """Load the text encoders, the denoiser and the VAE."""
        import torch

        from studio_diffusion.latent import LatentDiffusion

        folder = self._folder(ref)
        if not is_own(folder):
            return super().load(ref, device, dtype)
        if ref.additions:
            raise WeightsError(folder, f"`{folder}` is a model of Studio, which takes no `{ref.additions[0].kind}`",
                               hint=f"leave out `{ref.additions[0].kind}`")  # fmt: skip
        return LatentDiffusion(folder, device, getattr(torch, dtype))

    def start(self, model: Model, inputs: Any, rng: studio.Rng) -> State:  # type: ignore[override]
        """Encode the prompts and sample the noise."""
        return _backend(model).start(model, inputs, rng)

    def step(self, model: Model, states: Sequence[Any]) -> Sequence[State]:  # type: ignore[override]
        """One batched denoising step."""
        return _backend(model).step(model, states)

    def finish_many(self, model: Model, states: Sequence[Any]) -> list[studio.Image]:  # type: ignore[override]
        """Decode the latents of all states in one batch."""
        return _backend(model).finish_many(model, states)

    def preview(self, model: Model, state: Any) -> studio.Image | None:
        """Decode the predicted x_0."""
        return _backend(model).preview(model, state)

    def batch_key(self, state: State) -> Hashable:
        """The state's own key."""
        return state.key

    def facts(self, model: Model, inputs: Any) -> dict[str, Any]:
        """The noise schedule and the sampler."""
        return _backend(model).facts(model, inputs)


def is_own(folder: Path) -> bool:
    """Whether a folder has the noise schedule of Studio's own models, rectified flow solved by DPM-Solver++, which
    `starter` runs; others are run by their own pipeline. Raises WeightsError for a damaged config.
    """
    if not folder.is_dir() or not (folder / "model_index.json").exists():
        single = only_file(folder) is not None or any(folder.glob("*.safetensors"))
        return folder.is_dir() and not single  # `weights` says what is missing
    config = folder / "scheduler" / "scheduler_config.json"
    if read_config(folder / "model_index.json").get("_class_name") != "StableDiffusionPipeline" or not config.exists():
        return False
    found = read_config(config)
    return bool(found.get("use_flow_sigmas")) and found.get("_class_name") == "DPMSolverMultistepScheduler"


def _backend(model: Model) -> Any:
    """The module for this model."""
    from studio.diffusion.stepping import PipelineModel
    from studio_diffusion import starter, stock

    return stock if isinstance(model, PipelineModel) else starter
