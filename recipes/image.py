"""`python -m recipes.image`: train the U-Net of the image starter on the data set."""

from __future__ import annotations

from typing import Any

import studio
from recipes.command import main
from studio_diffusion.trainers import ImageOptions


class TrainImage(studio.Trainer):
    """Train the image starter's U-Net and write the complete starter."""

    name = "starter-image"
    Options = ImageOptions

    def run(self, options: Any, console: studio.Console) -> None:
        """Write `work/image/starter`, a folder in the layout of diffusers' StableDiffusionPipeline.

        The text tower is that of `python -m recipes.text`, the autoencoder that of `python -m recipes.vae`; with
        `from_starter` it is the starter's if `work` has none.
        """
        device = options.torch_device()
        from recipes.data import build
        from recipes.data.shares import share
        from recipes.text import captions, wordings
        from studio.loaders import transformers
        from studio.training.peers import Peers
        from studio_diffusion import export, train_image
        from studio_diffusion.trainers import autoencoder

        work = options.folder
        pictures, records = build.load(work / "data")
        records = wordings.join(records, wordings.load(work / "text" / "wordings.json"))
        vae = autoencoder(work, starter=options.from_starter).to(device)
        tower = transformers.model("CLIPTextModel", "CLIPTextConfig", work / "text" / "tower").to(device)
        keep = [index for index, record in enumerate(records) if record["split"] == "train"]
        kept = [records[index] for index in keep]
        unet = train_image.train(
            export.encode(vae, pictures)[keep], kept, train_image.text_states(tower, work / "text" / "tokenizer"),
            work / "image", device=device, steps=options.steps, minutes=options.minutes, batch=options.batch,
            peak=options.rate, begin=options.unet(), caption=captions.caption, weights=[share(each) for each in kept],
        )  # fmt: skip
        out = work / "image" / "starter"
        if not Peers().rank:  # the first process of the run writes the result
            export.save(out, vae, unet, tower, work / "text" / "tokenizer")
        console.print(f"the starter is in {out}")


if __name__ == "__main__":
    main(TrainImage.name)
