"""DCGAN's generator and discriminator at 64x64 (Radford, Metz and Chintala 2015), optionally class-conditional.

The layers and their names are those of the PyTorch DCGAN tutorial (`main.0.weight` …), so that its checkpoints load.
Classes are an addition: an embedding of the label next to the latents (Mirza and Osindero 2014) and a projection in the
discriminator (Miyato and Koyama 2018).

Try it: `GeneratorNet(100, 64)(torch.randn(1, 100)).shape` is (1, 3, 64, 64).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

import studio
from studio import devices

SIZE = 64
"""Width and height of the pictures, in pixels: a first layer to 4x4, then four that double."""


def _initialise(module: nn.Module) -> None:
    """The paper's initialization: normal with deviation 0.02, around 1 for the gain of batch norms."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


class GeneratorNet(nn.Module):
    """Latents to pictures by fractionally-strided convolutions: 3.6M parameters at `latent` 100 and `width` 64.

    Attributes:
        latent: the number of latents.
        classes: the number of classes; 0 for an unconditional model.
    """

    def __init__(self, latent: int = 100, width: int = 64, classes: int = 0, embedded: int = 64) -> None:
        """`width` is the channels of the last hidden layer (paper: 128), `embedded` the label embedding's size."""
        super().__init__()
        self.latent, self.width, self.classes = latent, width, classes
        self.names: tuple[str, ...] = ()  # of the classes
        channels = [latent + (embedded if classes else 0), 8 * width, 4 * width, 2 * width, width]
        layers: list[nn.Module] = []
        for index, (before, after) in enumerate(pairwise(channels)):
            stride, padding = (2, 1) if index else (1, 0)
            layers += [
                nn.ConvTranspose2d(before, after, 4, stride, padding, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            ]
        self.main = nn.Sequential(*layers, nn.ConvTranspose2d(width, 3, 4, 2, 1, bias=False), nn.Tanh())
        self.apply(_initialise)
        if classes:
            self.embedding = nn.Embedding(classes, embedded)

    @property
    def picture(self) -> tuple[int, int, int]:
        """Height, width and channels of a picture."""
        return SIZE, SIZE, 3

    def here(self, x: Tensor) -> Tensor:
        """The tensor on the model's device."""
        return devices.upload(x, next(self.parameters()).device)

    def condition(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """Latents (B, latent), concatenated with the embeddings of labels (B,) if the model has classes."""
        return torch.cat([z, self.embedding(labels).to(z)], 1) if self.classes and labels is not None else z

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Generate pictures.

        Args:
            z: (B, latent), normal.
            labels: (B,) int64 in [0, classes); None for an unconditional model.

        Returns:
            (B, 3, 64, 64) in [-1, 1].
        """
        return self.generate(self.condition(z, labels))

    def generate(self, x: Tensor) -> Tensor:
        """Pictures from the output of `condition`."""
        made: Tensor = self.main(x[:, :, None, None])  # (B, 8W, 4, 4) … (B, W, 32, 32), (B, 3, 64, 64)
        return made

    @torch.inference_mode()
    def pixels(self, x: Tensor) -> Tensor:
        """The same as uint8 (B, 64, 64, 3) on the CPU. Raises NotFinite."""
        return studio.pixels(self.generate(x).float().add(1).div(2)).permute(0, 2, 3, 1)


class Discriminator(nn.Module):
    """Scores pictures by strided convolutions; higher is more real."""

    def __init__(self, width: int = 64, classes: int = 0) -> None:
        """`width` is the channels of the first hidden layer (the paper: 128)."""
        super().__init__()
        channels = [3, width, 2 * width, 4 * width, 8 * width]
        layers: list[nn.Module] = []
        for index, (before, after) in enumerate(pairwise(channels)):
            layers.append(nn.Conv2d(before, after, 4, 2, 1, bias=False))
            if index:  # the paper: no batch norm at the discriminator's input
                layers.append(nn.BatchNorm2d(after))
            layers.append(nn.LeakyReLU(0.2, inplace=True))
        self.main = nn.Sequential(*layers, nn.Conv2d(8 * width, 1, 4, bias=False))
        self.apply(_initialise)
        self.projection = nn.Embedding(classes, 8 * width) if classes else None
        if self.projection is not None:
            nn.init.normal_(self.projection.weight, 0.0, 0.02)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Score pictures of (B, 3, 64, 64) in [-1, 1], with labels of (B,) if there are classes: (B,) logits."""
        features = self.main[:-1](x)  # (B, 8W, 4, 4)
        scores: Tensor = self.main[-1](features).flatten()  # (B,)
        if self.projection is not None:
            scores = scores + (self.projection(labels) * features.sum((2, 3))).sum(1)
        return scores
