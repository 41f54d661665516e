"""`studio train video`, with the image model's VAE and text encoder. Loads no torch until run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import studio
from studio.training.options import TrainingOptions, training_data

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

    from studio_video.train import Draw

SIZE = 128
"""The side of training frames, in pixels."""


class VideoOptions(TrainingOptions):
    """The options of training a video model."""

    frames: int = studio.field(32, ge=1, le=65_536, help="batch size in frames, of all clips together")
    rate: float = studio.field(1e-3, gt=0, lt=0.1, help="peak learning rate")


class TrainVideo(studio.Trainer):
    """Train the video model on clips with captions."""

    name = "video"
    starter = "python -m recipes.video"
    starter_options = ("groups", "things", "also", "moving", "animated", "no-animated")

    class Options(VideoOptions):
        """See VideoOptions."""

        data: str = studio.field(
            "", help="a folder of videos, each with its caption in NAME.txt beside it, or in a subfolder named by it"
        )

    def run(self, options: Any, console: studio.Console) -> None:
        """Write `work/video/model`: `config.json` and weights."""
        data = training_data(self, "data", options.data, "a folder of videos with captions")
        from studio.training.agreement import fingerprint
        from studio_diffusion import export
        from studio_video import dataset, train

        clips, captions = dataset.captioned(data, SIZE)

        def prepare(vae: AutoencoderKL) -> tuple[Draw, str]:
            latents, marks = [], [captions]
            for frames in clips:
                latents.append(export.encode(vae, frames).half())
                marks.append([fingerprint(frames)])
            console.print(f"{len(latents)} clips, {sum(map(len, latents))} frames")
            return lambda rng, frames, _: train.draw_clips(latents, captions, rng, frames), fingerprint(marks)

        train_network(options, console, prepare)


def train_network(
    options: Any, console: studio.Console, prepare: Callable[[AutoencoderKL], tuple[Draw, str]],
    settings: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Train the network and write `work/video/model`.

    Args:
        prepare: makes, with the image model's VAE on the device, the function that draws batches, and a fingerprint of
            the data.
        settings: see `train.train`.
    """
    device = options.torch_device()
    import torch

    from studio.devices.precision import fast_dtype
    from studio.loaders import diffusers, transformers
    from studio.training.peers import Peers
    from studio_diffusion.image import STARTER
    from studio_video import files, train
    from studio_video.model import VideoConfig
    from studio_video.texts import TextEncoder

    work = options.folder / "video"
    vae = diffusers.pretrained("AutoencoderKL", STARTER / "vae")
    draw, data = prepare(vae.to(device, getattr(torch, fast_dtype(device.type))))
    tower = transformers.model("CLIPTextModel", "CLIPTextConfig", STARTER / "text_encoder").to(device)
    texts = TextEncoder(tower, transformers.tokenizer("CLIPTokenizer", STARTER / "tokenizer"))
    config = VideoConfig(channels=vae.config.latent_channels, text=tower.config.hidden_size)
    model = train.train(
        draw, data, texts, work, device=device, steps=options.steps, minutes=options.minutes, config=config,
        frames=options.frames, peak=options.rate, settings=settings or {},
    )  # fmt: skip
    if not Peers().rank:  # the first process of the run writes the result
        files.save(work / "model", model)
        console.print(f"the model is in {work / 'model'}")
