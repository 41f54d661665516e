"""Converting PyTorch checkpoints to safetensors: only tensors are read, by `torch.load(weights_only=True)`.

It accepts tensors and plain containers and rejects every other object, so no code in a checkpoint runs. Nested names
are joined with dots: `netG_state_dict` → `main.0.weight` becomes `netG_state_dict.main.0.weight`. Numbers, text and
other plain values are left out.

Try it: ``python -c "import pathlib, studio.models.convert as c; print(c.convert(pathlib.Path('weights.pth')))"``
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from studio.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

DEEPEST = 16  # containers in containers
MOST_REPEATED = 4  # times that a checkpoint's tensors together may be larger than its file (tied weights)


def converted(name: str) -> str:
    """The name of the converted file: `a/weights.tar` → `a/weights.safetensors`."""
    return name.rpartition(".")[0] + ".safetensors"


def convert(path: Path) -> Path:
    """Write the tensors of a PyTorch checkpoint beside it as safetensors, and remove it. Returns the new file.

    Raises:
        ModelError: it is not a checkpoint of PyTorch 1.6 or later, contains objects other than tensors and plain
            values, no tensors, or far more data than its size; or a file of the new name exists.
    """
    import torch
    from safetensors.torch import save_file

    target = path.with_name(converted(path.name))
    if target.exists():
        raise ModelError(f"`{path.name}` would be converted to `{target.name}`, which already exists")
    _check_zip(path)
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a hostile file makes of the reader is no closed list
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        hint = "if you trust it, save only its tensors: `torch.save(model.state_dict(), ...)`"
        raise ModelError(f"`{path.name}` contains more than tensors, or is damaged: {said}", hint=hint) from None
    tensors: dict[str, Tensor] = {}
    for name, tensor in _tensors(held, "", 0):
        if name in tensors:
            raise ModelError(f"`{path.name}` has two tensors called `{name}`")
        tensors[name] = tensor.detach()
    if not tensors:
        raise ModelError(f"`{path.name}` contains no tensors")
    size = path.stat().st_size
    if (total := sum(each.numel() * each.element_size() for each in tensors.values())) > MOST_REPEATED * size:
        raise ModelError(f"`{path.name}` has {size:,} bytes, and its tensors claim {total:,}")
    save_file({name: each.clone().contiguous() for name, each in tensors.items()}, target)
    path.unlink()
    return target


def _check_zip(path: Path) -> None:
    """Raise ModelError for a file that is not an uncompressed zip archive, as `torch.save` writes since 1.6."""
    try:
        with zipfile.ZipFile(path) as archive:
            compressed = [each.filename for each in archive.infolist() if each.compress_type != zipfile.ZIP_STORED]
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        hint = "if an older PyTorch wrote it, load it and save it again with `torch.save`; else download it again"
        raise ModelError(f"`{path.name}` is not a checkpoint of PyTorch 1.6 or later: {error}", hint=hint) from None
    if compressed:
        raise ModelError(f"`{path.name}` has compressed parts (`{compressed[0]}`), unlike a PyTorch checkpoint")


def _tensors(value: object, name: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested containers with their dotted names."""
    import torch

    if depth > DEEPEST:
        raise ModelError(f"containers are nested more than {DEEPEST} deep at `{name[:60]}`")
    if isinstance(value, torch.Tensor):
        yield name or "tensor", value
        return
    parts: Iterator[tuple[object, object]] = iter(())
    if isinstance(value, Mapping):
        parts = iter(value.items())
    elif isinstance(value, list | tuple):
        parts = iter(enumerate(value))
    for key, part in parts:
        yield from _tensors(part, f"{name}.{key}" if name else str(key), depth + 1)
