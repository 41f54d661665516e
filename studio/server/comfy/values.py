"""What goes along the links of a graph while it is compiled: models, texts, latents, and pictures to be generated.

Try it: ``Latent((64, 64)).count`` is 1
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from studio.media import Image
from studio.server.catalogue import Choice

Size = tuple[int, int]
"""Width and height in pixels."""
Loras = tuple[tuple[str, float], ...]
"""Names and weights, in order."""


@dataclass(frozen=True)
class Denoiser:
    """MODEL: a generator with its weights, and the LoRAs of its denoiser."""

    choice: Choice
    loras: Loras = ()


@dataclass(frozen=True)
class Clip:
    """CLIP: a model's text encoders, their LoRAs, and how many layers are skipped at their end."""

    choice: Choice
    loras: Loras = ()
    skip: int = 0


@dataclass(frozen=True)
class Vae:
    """VAE: that of the model `choice`, or another downloaded one by its `source`."""

    choice: Choice | None = None
    source: str = ""


@dataclass(frozen=True)
class ControlNet:
    """CONTROL_NET: a downloaded ControlNet."""

    source: str


@dataclass(frozen=True)
class Control:
    """A picture that a ControlNet follows, and how much; `both` says that it is for the other prompt, too."""

    net: str
    image: Image
    strength: float
    both: bool = False


@dataclass(frozen=True)
class Conditioning:
    """CONDITIONING: a prompt, and the ControlNets that guide it."""

    text: str
    clip: Clip
    controls: tuple[Control, ...] = ()


@dataclass(eq=False)
class Render:
    """A request of a generator, or several with consecutive seeds.

    Attributes:
        node: the id of its sampler node.
        choice: the generator.
        values: its inputs, without the image if that is another render's.
        count: the number of requests.
        size: of its pictures.
        earlier: the render whose picture it changes, or None.
        encoder: the VAE with which that was encoded.
        origins: the node and the input that each input of the generator comes from.
        decoder: the VAE with which its pictures are decoded, once that is known.
    """

    node: str
    choice: Choice
    values: dict[str, Any]
    count: int
    size: Size
    earlier: Render | None = None
    encoder: Vae | None = None
    origins: dict[str, tuple[str, str]] = field(default_factory=dict)
    decoder: Vae | None = None


@dataclass(frozen=True)
class Pixels:
    """IMAGE: a picture, or the pictures of a render; `size` is what it was scaled to."""

    size: Size
    image: Image | None = None
    render: Render | None = None

    @property
    def count(self) -> int:
        """The number of pictures."""
        return self.render.count if self.render is not None else 1

    @property
    def scaled(self) -> bool:
        """Whether the pictures of a render are to be scaled."""
        return self.render is not None and self.size != self.render.size


@dataclass(frozen=True)
class Latent:
    """LATENT: an empty one, an encoded picture with the mask of what to repaint, or what a sampler makes.

    `vae` is the encoder of the picture; `node` made the latent.
    """

    size: Size
    count: int = 1
    picture: Pixels | None = None
    mask: Image | None = None
    render: Render | None = None
    vae: Vae | None = None
    node: str = ""


@dataclass(frozen=True)
class Mask:
    """MASK: white is to be repainted."""

    image: Image


@dataclass(frozen=True)
class Saved:
    """An output node: its id, what it saves, and the type of the files: ``output``, ``temp``, or empty for pictures
    that go through the websocket.
    """

    node: str
    picture: Pixels
    folder: str
