"""`python -m recipes.vae`: train the autoencoder of the image starter on the data set."""

from __future__ import annotations

from typing import Any

import studio
from recipes.command import main
from studio.training.options import TrainingOptions


class TrainVae(studio.Trainer):
    """Train the image starter's autoencoder, 128x128 pictures to 16x16 latents."""

    name = "starter-vae"

    class Options(TrainingOptions):
        """See TrainingOptions."""

        decoder_only: bool = studio.field(
            False, help="train only the decoder of `work/vae/model`; latents do not change"
        )

    def run(self, options: Any, console: studio.Console) -> None:
        """Write `work/vae/model` (diffusers' AutoencoderKL), with latents of mean 0 and deviation 1."""
        import numpy as np

        from recipes.data import build
        from recipes.data.shares import share
        from studio_diffusion.trainers import train_autoencoder

        pictures, records = build.load(options.folder / "data")
        # Things are drawn four times as often as flags and signs.
        counts = [(4 if share(record) >= 0.4 else 1) * (record["split"] == "train") for record in records]
        train_autoencoder(options, console, np.asarray(pictures), np.repeat(np.arange(len(records)), counts))


if __name__ == "__main__":
    main(TrainVae.name)
