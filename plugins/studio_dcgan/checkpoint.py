"""DCGAN generators on disk: one safetensors file, in the layout of the PyTorch DCGAN tutorial.

`save` writes float16 tensors named `main.0.weight` …, with the class names in the file's metadata. `find` reads only
the header, so that shapes are checked before anything is built. Checkpoints of the tutorial converted by `studio models
pull --convert` (`netG_state_dict.main.0.weight` …) can be read too.

Try it: `checkpoint.find(Path("model.safetensors")).names`
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch

import studio
from studio.errors import WeightsError
from studio.files import check_regular, make_folder, write_atomically
from studio_dcgan.model import GeneratorNet

FIRST, LAST, EMBEDDING = "main.0.weight", "main.12.weight", "embedding.weight"
MOST = 4096  # latents, or channels of the widest layer; far above known models
_GENERATORS = re.compile(r"^(?:netG_state_dict\.|netG\.|generator\.)?(?:module\.)?(?=main\.|embedding\.)")


@dataclass(frozen=True)
class CheckpointInfo:
    """The header of a checkpoint.

    Attributes:
        latent, width, classes, embedded: see `GeneratorNet`.
        names: the class names; empty for an unconditional model.
    """

    path: Path
    latent: int
    width: int
    classes: int
    embedded: int
    names: tuple[str, ...]

    def build(self, device: str, dtype: str) -> GeneratorNet:
        """The generator with its weights, frozen. Raises WeightsError if they do not fit or are not finite."""

        def empty() -> GeneratorNet:
            return GeneratorNet(self.latent, self.width, self.classes, self.embedded)

        made = studio.module(empty, [self.path], device=device, dtype=dtype, rename=plain_name)
        bad = [name for name, each in made.state_dict().items() if not each.isfinite().all()]
        if bad:
            raise WeightsError(self.path, f"`{bad[0]}` of `{self.path}` has values that are not finite", hint=_AGAIN)
        made.names = self.names
        return made


_AGAIN = "download the file again, or train a new model with `studio train dcgan`"


def plain_name(stored: str) -> str | None:
    """A tensor's name in the module; None for those of the discriminator or an optimizer."""
    found = _GENERATORS.match(stored)
    return stored[found.end() :] if found else None


def find(path: Path) -> CheckpointInfo:
    """Read a file's header. Raises WeightsError if it is missing, damaged, or not a 64x64 DCGAN."""
    if path.is_dir():
        path = path / "model.safetensors"
    try:
        check_regular(path)
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            shapes = {plain_name(name): file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise WeightsError(path, f"the model `{path}` does not exist", hint=_AGAIN) from None
    except (OSError, safetensors.SafetensorError) as error:
        message = f"`{path}` cannot be read as safetensors: {error}"
        raise WeightsError(path, message, hint=f"for a PyTorch checkpoint, {_CONVERT.format(path)}") from None
    latent, width, classes, embedded = _shape(path, shapes)
    return CheckpointInfo(path, latent, width, classes, embedded, _names(path, metadata, classes))


_CONVERT = "convert it with `studio models pull --convert file:{}`; otherwise download the file again"


def _shape(path: Path, shapes: dict[str | None, list[int]]) -> tuple[int, int, int, int]:
    """Latents, width, classes and embedding size, from the shapes of the first and last layers and the embedding."""
    layers = sorted(int(name.split(".")[1]) for name in shapes if name and re.fullmatch(r"main\.\d+\.weight", name))
    first, last, embedding = (shapes.get(name) for name in (FIRST, LAST, EMBEDDING))
    classes, embedded = embedding or (0, 0)
    fits = (
        first is not None and last is not None and layers[-1] == 12 and len(first) == len(last) == 4
        and last[1:] == [3, 4, 4] and 1 <= first[0] - embedded <= MOST and first[1] == 8 * last[0] <= MOST
    )  # fmt: skip
    if not fits:
        layout = (
            f"`{FIRST}` is {first or 'missing'}, `{LAST}` {last or 'missing'}, the last layer {layers[-1:] or 'none'}"
        )
        reason = f"`{path}` is not a 64x64 RGB DCGAN generator: {layout}"
        hint = "it needs five layers, [latents, 8W, 4, 4] to [W, 3, 4, 4], numbered as in PyTorch's DCGAN tutorial"
        raise WeightsError(path, reason, hint=hint)
    assert first is not None
    assert last is not None
    return first[0] - embedded, last[0], classes, embedded


def _names(path: Path, metadata: dict[str, str], classes: int) -> tuple[str, ...]:
    """The class names; numbers if the file has none."""
    if "classes" not in metadata:
        return tuple(str(index) for index in range(classes))
    try:
        names = json.loads(metadata["classes"])
    except ValueError:
        names = None
    if not isinstance(names, list) or len(names) != classes or not all(isinstance(each, str) for each in names):
        reason = f"`{path}` has {classes} classes, but its metadata does not have {classes} names"
        raise WeightsError(path, reason, hint=_AGAIN)
    return tuple(names)


def save(generator: GeneratorNet, path: Path, names: Sequence[str] = ()) -> None:
    """Write a file atomically: floating-point tensors as float16, names in the metadata.

    Raises:
        ValueError: the numbers of names and classes differ.
    """
    if len(names) != generator.classes:
        raise ValueError(f"{len(names)} names for {generator.classes} classes")
    tensors = {
        name: (each.half() if each.is_floating_point() else each).contiguous().cpu()
        for name, each in generator.state_dict().items()
    }
    make_folder(path.parent)
    write_atomically(path, safetensors.torch.save(tensors, {"classes": json.dumps(list(names), ensure_ascii=False)}))
