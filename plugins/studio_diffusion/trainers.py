"""`studio train vae`, `image` and `ddpm`, on a folder of pictures. Loads no torch until run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import studio
from studio.training.options import TrainingOptions, training_data

if TYPE_CHECKING:
    import numpy as np
    from diffusers import AutoencoderKL

SIZE = 128
"""The side of the image model's training pictures, in pixels."""


class BuildData(studio.Trainer):
    """Build the data set of the starters."""

    name = "data"
    starter = "python -m recipes.data"


class TrainVae(studio.Trainer):
    """Train an autoencoder for the image model, 128x128 pictures to 16x16 latents."""

    name = "vae"
    starter = "python -m recipes.vae"

    class Options(TrainingOptions):
        """See TrainingOptions."""

        data: str = studio.field("", help="a folder of pictures")
        decoder_only: bool = studio.field(
            False, help="train only the decoder of `work/vae/model`; latents do not change"
        )

    def run(self, options: Any, console: studio.Console) -> None:
        """Write `work/vae/model` (diffusers' AutoencoderKL), with latents of mean 0 and deviation 1."""
        data = training_data(self, "data", options.data, "a folder of pictures")
        import numpy as np

        from studio.training import pictures

        shown = pictures.read(pictures.files(data), SIZE)
        train_autoencoder(options, console, shown, np.arange(len(shown)))


def train_autoencoder(options: Any, console: studio.Console, pictures: np.ndarray, rows: np.ndarray) -> None:
    """Train the autoencoder and write `work/vae/model`; see `train_vae.train` for `pictures` and `rows`."""
    device = options.torch_device()
    from studio.files import new_folder
    from studio.loaders import diffusers
    from studio.training.peers import Peers
    from studio_diffusion import export, train_vae

    out = options.folder / "vae" / "model"
    given = diffusers.pretrained("AutoencoderKL", out) if options.decoder_only else None
    run = options.folder / ("vae-decoder" if options.decoder_only else "vae")
    vae = train_vae.train(
        pictures, rows, run, device=device, steps=options.steps, minutes=options.minutes,
        peak=4e-4 if given else 1.5e-3, decoder_of=given,
    )  # fmt: skip
    if Peers().rank:
        return  # the first process of the run writes the result
    if not options.decoder_only:
        export.whiten(vae, pictures[::2])
    with new_folder(out) as part:
        vae.save_pretrained(part)
    console.print(f"the autoencoder is in {out}")


class ImageOptions(TrainingOptions):
    """The options of training a U-Net for the image model."""

    batch: int = studio.field(32, ge=1, le=1024, help="batch size")
    rate: float = studio.field(6e-4, gt=0, lt=0.1, help="peak learning rate")
    from_starter: bool = studio.field(False, help="start from the U-Net that ships")

    def unet(self) -> Any:
        """The U-Net to begin with; None for fresh weights."""
        from studio.loaders import diffusers
        from studio_diffusion.image import STARTER

        return diffusers.pretrained("UNet2DConditionModel", STARTER / "unet") if self.from_starter else None


class TrainImage(studio.Trainer):
    """Train the U-Net of the image model on pictures with captions."""

    name = "image"
    starter = "python -m recipes.image"

    class Options(ImageOptions):
        """See ImageOptions."""

        data: str = studio.field(
            "", help="a folder of pictures, each with its caption in NAME.txt beside it, or in a subfolder named by it"
        )

    def run(self, options: Any, console: studio.Console) -> None:
        """Write `work/image/starter`, a folder in the layout of diffusers' StableDiffusionPipeline.

        The text encoder is the one that ships; the autoencoder is that of `work/vae/model` if there is one, else the
        one that ships.
        """
        data = training_data(self, "data", options.data, "a folder of pictures with captions")
        device = options.torch_device()
        from studio.loaders import transformers
        from studio.training.peers import Peers
        from studio.training.pictures import captioned
        from studio_diffusion import export, train_image
        from studio_diffusion.image import STARTER

        pictures, captions = captioned(data, SIZE)
        vae = autoencoder(options.folder, starter=True).to(device)
        tower = transformers.model("CLIPTextModel", "CLIPTextConfig", STARTER / "text_encoder").float().to(device)
        unet = train_image.train(
            export.encode(vae, pictures), captions, train_image.text_states(tower, STARTER / "tokenizer"),
            options.folder / "image", device=device, steps=options.steps, minutes=options.minutes,
            batch=options.batch, peak=options.rate, begin=options.unet(),
        )  # fmt: skip
        out = options.folder / "image" / "starter"
        if not Peers().rank:  # the first process of the run writes the result
            export.save(out, vae, unet, tower, STARTER / "tokenizer")
        console.print(f"the model is in {out}")


def autoencoder(work: Path, *, starter: bool) -> AutoencoderKL:
    """The autoencoder in `work/vae/model`; with `starter` the one that ships if there is none."""
    from studio.loaders import diffusers
    from studio_diffusion.image import STARTER

    own = work / "vae" / "model"
    return diffusers.pretrained("AutoencoderKL", STARTER / "vae" if starter and not own.exists() else own)


class TrainDdpm(studio.Trainer):
    """Train a DDPM: pixel diffusion of small pictures, with or without labels."""

    name = "ddpm"
    starter = "python -m recipes.data"

    class Options(TrainingOptions):
        """See TrainingOptions."""

        data: str = studio.field("", help="a folder of pictures, or of subfolders named by label")
        size: int = studio.field(32, ge=16, le=256, multiple_of=8, help="width and height of the pictures in pixels")
        prediction: str = studio.field(
            "v", choices=("epsilon", "v", "x0"), help="prediction type: the noise, v, or the picture"
        )
        schedule: str = studio.field("cosine", choices=("linear", "cosine"), help="noise schedule")
        drop: float = studio.field(0.1, ge=0, le=1, help="fraction of labels dropped, for classifier-free guidance")
        min_snr: float = studio.field(5.0, gt=0, le=1e9, help="gamma of min-SNR loss weighting; 1e9 is off")
        batch: int = studio.field(32, ge=1, le=4096, help="batch size")
        rate: float = studio.field(6e-4, gt=0, lt=0.1, help="peak learning rate")

    def run(self, options: Any, console: studio.Console) -> None:
        """Write `work/ddpm/model`, a folder in the layout of diffusers' DDPMPipeline."""
        data = training_data(self, "data", options.data, "a folder of pictures")
        device = options.torch_device()
        import torch

        from studio.diffusion import noise
        from studio.training.peers import Peers
        from studio.training.pictures import labelled
        from studio_diffusion import export, train_pixel
        from studio_diffusion.pixel import PixelDiffusion

        pictures, labels = labelled(data, options.size)
        out = options.folder / "ddpm"
        schedule = noise.config(options.schedule, options.prediction)
        unet, names = train_pixel.train(
            pictures, labels, noise.NoiseSchedule(schedule), out, device=device, steps=options.steps,
            minutes=options.minutes, batch=options.batch, peak=options.rate, drop=options.drop, gamma=options.min_snr,
        )  # fmt: skip
        if Peers().rank:
            return  # the first process of the run writes the result
        export.save_pixel(out / "model", unet, schedule, names)
        train_pixel.save_grid(PixelDiffusion.load(out / "model", str(device), torch.float32), out)
        console.print(f"the model is in {out / 'model'}, sample pictures in {out / 'samples.png'}")
