"""`studio train dcgan`, on a folder of pictures. Loads no torch until run."""

from __future__ import annotations

from typing import Any

import studio
from studio.training.options import TrainingOptions, training_data


class TrainDcgan(studio.Trainer):
    """Train a DCGAN on 64x64 pictures."""

    name = "dcgan"
    starter = "python -m recipes.data"

    class Options(TrainingOptions):
        """See TrainingOptions."""

        data: str = studio.field("", help="a folder of pictures; each subfolder is a class")
        batch: int = studio.field(16, ge=2, le=4096, help="batch size")
        rate: float = studio.field(5e-4, gt=0, lt=0.1, help="peak learning rate of both networks")
        width: int = studio.field(32, ge=8, le=512, multiple_of=8, help="channels at the highest resolution")
        grid_every: int = studio.field(500, ge=1, help="steps between sample grids")

    def run(self, options: Any, console: studio.Console) -> None:
        """Write `work/dcgan/model.safetensors` and sample grids."""
        data = training_data(self, "data", options.data, "a folder of pictures")
        device = options.torch_device()
        from studio.training.peers import Peers
        from studio.training.pictures import labelled
        from studio_dcgan import checkpoint, train
        from studio_dcgan.model import SIZE

        pictures, labels = labelled(data, SIZE)
        generator, names = train.train(
            pictures, labels, options.folder / "dcgan", device=device, steps=options.steps, minutes=options.minutes,
            batch=options.batch, rate=options.rate, width=options.width, grid_every=options.grid_every,
        )  # fmt: skip
        out = options.folder / "dcgan" / "model.safetensors"
        if not Peers().rank:  # the first process of the run writes the result
            checkpoint.save(generator, out, names)
            train.save_grid(generator, out.with_name("samples.png"))
        console.print(f"the model is in {out}")
