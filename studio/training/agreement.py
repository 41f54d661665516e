"""What a run is of, written down when it begins and compared when it goes on: its data, labels, form and options.

`run.json` in the run's folder holds two lists. What is `fixed` gives the weights their meaning or the optimizer its
form: a run does not go on with another. What is `changeable` (a batch, a learning rate) may be another, which is said.
Knows nothing of what is trained.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from studio.errors import StoreError, StudioError
from studio.files import make_folder, open_regular, read_regular, write_atomically

FILE = "run.json"
_BLOCK = 1 << 22
_MOST_BYTES = 16 << 20


def fingerprint(*parts: object) -> str:
    """A hash of data: arrays, tensors, the contents of files (Path), and values that have a JSON form."""
    told = hashlib.sha256()
    for part in parts:
        if isinstance(part, torch.Tensor):
            told.update(f"{part.dtype}{tuple(part.shape)}".encode())
            part = part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        if isinstance(part, np.ndarray):
            told.update(f"{part.dtype}{part.shape}".encode())
            for row in part if part.ndim > 1 else [part]:  # a mapped array is not read as a whole
                told.update(np.ascontiguousarray(row).data)
        elif isinstance(part, Path):
            with open_regular(part) as file:
                while block := file.read(_BLOCK):
                    told.update(block)
        else:
            told.update(json.dumps(part, ensure_ascii=False, sort_keys=True).encode())
        told.update(b"\0")
    return told.hexdigest()[:32]


def agree(folder: Path, fixed: Mapping[str, Any], changeable: Mapping[str, Any] | None = None, *, begun: bool) -> bool:
    """Write down what a new run in `folder` is of, or compare it with what is written there.

    Args:
        begun: whether there is anything trained; a run without may be another from one try to the next.

    Returns:
        Whether all that is fixed is as it was.

    Raises:
        StudioError: something that is fixed differs, and the run has begun; nothing was changed.
        StoreError: what is written there is damaged.
    """
    path = make_folder(folder) / FILE
    meant: dict[str, dict[str, Any]] = json.loads(json.dumps({"fixed": fixed, "changeable": changeable or {}}))
    before = _read(path)
    others = _differing(before["fixed"], meant["fixed"])
    if others and begun:
        told = "; ".join(others)
        raise StudioError(
            f"the run in `{folder}` was begun otherwise: {told}",
            hint=f"go on with the same options and data, name another `--work`, or remove `{folder}` to begin anew",
        )
    for each in _differing(before["changeable"], meant["changeable"]) if begun else ():
        print(f"note: the run in {folder} goes on otherwise than it began: {each}", file=sys.stderr)
    merged = {name: {**before[name], **meant[name]} for name in meant}
    if merged != before:
        write_atomically(path, json.dumps(merged, ensure_ascii=False, indent=1).encode())
    return not others


def _read(path: Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {"fixed": {}, "changeable": {}}
    try:
        found = json.loads(read_regular(path, _MOST_BYTES))
        return {name: dict(found[name]) for name in ("fixed", "changeable")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"`{path}` is damaged: {error}", hint="remove it to go on without a comparison") from None


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What both know and differ in; with the values where they are short."""
    made = []
    for name, value in now.items():
        if name in before and before[name] != value:
            short = all(len(json.dumps(each)) <= 20 for each in (before[name], value))
            made.append(f"`{name}` was {before[name]}, now {value}" if short else f"`{name}` is another")
    return made
