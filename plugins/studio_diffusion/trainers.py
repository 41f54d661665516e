"""`studio train vae`, `image` and `ddpm`. Loads no torch until run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import studio
from studio.training.options import TrainingOptions


class TrainVae(studio.Trainer):
    """Train the image model's autoencoder, 128x128 pictures to 16x16 latents."""

    name = "vae"

    class Options(TrainingOptions):
        """See TrainingOptions."""

        decoder_only: bool = studio.field(
            False, help="train only the decoder of `work/vae/model`; latents do not change"
        )

    def run(self, options: Any, console: studio.Console) -> None:
        """Write `work/vae/model` (diffusers' AutoencoderKL), with latents of mean 0 and deviation 1."""
        device = options.torch_device()
        import numpy as np

        from studio.files import new_folder
        from studio.loaders import diffusers
        from studio.training.peers import Peers
        from studio_datasets import build
        from studio_diffusion import export, train_image, train_vae

        pictures, records = build.load(options.folder / "data")
        # Things are drawn four times as often as flags and signs.
        shares = [4 if train_image.share(record) >= 0.4 else 1 for record in records]
        rows = np.repeat(
            np.arange(len(records)), [n if r["split"] == "train" else 0 for n, r in zip(shares, records, strict=True)]
        )
        out = options.folder / "vae" / "model"
        given = diffusers.pretrained("AutoencoderKL", out) if options.decoder_only else None
        run = options.folder / ("vae-decoder" if options.decoder_only else "vae")
        vae = train_vae.train(
            np.asarray(pictures),
            rows,
            run,
            device=device,
            steps=options.steps,
            minutes=options.minutes,
            peak=4e-4 if given else 1.5e-3,
            decoder_of=given,
        )
        if Peers().rank:
            return  # the first process of the run writes the result
        if not options.decoder_only:
            export.whiten(vae, np.asarray(pictures[::2]))
        with new_folder(out) as part:
            vae.save_pretrained(part)
        console.print(f"the autoencoder is in {out}")


class TrainImage(studio.Trainer):
    """Train the image model's U-Net and write the complete starter."""

    name = "image"

    class Options(TrainingOptions):
        """See TrainingOptions."""

        batch: int = studio.field(32, ge=1, le=1024, help="batch size")
        rate: float = studio.field(6e-4, gt=0, lt=0.1, help="peak learning rate")
        from_starter: bool = studio.field(
            False, help="start from the starter's weights, and use its autoencoder unless `work` has one"
        )

    def run(self, options: Any, console: studio.Console) -> None:
        """Write `work/image/starter`, a folder in the layout of diffusers' StableDiffusionPipeline."""
        device = options.torch_device()
        from studio.loaders import diffusers, transformers
        from studio.training.peers import Peers
        from studio_clip import wordings
        from studio_datasets import build
        from studio_diffusion import export, train_image
        from studio_diffusion.image import STARTER

        work = options.folder
        pictures, records = build.load(work / "data")
        records = wordings.join(records, wordings.load(work / "text" / "wordings.json"))
        own = work / "vae" / "model"
        kept = STARTER / "vae" if options.from_starter and not own.exists() else own
        vae = diffusers.pretrained("AutoencoderKL", kept).to(device)
        begin = None
        if options.from_starter:
            begin = diffusers.pretrained("UNet2DConditionModel", STARTER / "unet")
        tower = transformers.model("CLIPTextModel", "CLIPTextConfig", work / "text" / "tower").to(device)
        keep = [index for index, record in enumerate(records) if record["split"] == "train"]
        latents = export.encode(vae, pictures)[keep]
        encode = train_image.text_states(tower, work / "text" / "tokenizer")
        unet = train_image.train(
            latents, [records[i] for i in keep], encode, work / "image", device=device, steps=options.steps,
            minutes=options.minutes, batch=options.batch, peak=options.rate, begin=begin,
        )  # fmt: skip
        if not Peers().rank:  # the first process of the run writes the result
            export.save(work / "image" / "starter", vae, unet, tower, work / "text" / "tokenizer")
        console.print(f"the starter is in {work / 'image' / 'starter'}")


class TrainDdpm(studio.Trainer):
    """Train a DDPM: pixel diffusion of small pictures, with or without labels."""

    name = "ddpm"

    class Options(TrainingOptions):
        """See TrainingOptions."""

        data: str = studio.field(
            "", help="a folder of pictures, or of subfolders named by label; default: the emoji of `work/data`"
        )
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
        device = options.torch_device()
        import torch

        from studio.training.peers import Peers
        from studio_datasets import labelled
        from studio_diffusion import export, noise, train_pixel
        from studio_diffusion.pixel import PixelDiffusion

        if options.data:
            pictures, labels = labelled.folder(Path(options.data), options.size)
        else:
            pictures, labels = labelled.things(options.folder / "data", options.size)
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
