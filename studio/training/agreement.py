"""The settings of a training run, stored when it begins and compared when it resumes: data, labels, shapes, options.

`run.json` in the run's folder has two groups. `fixed` settings define the weights or the optimizer's state: a run
cannot resume with others. `changeable` ones (batch size, learning rate) may differ, with a note.
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
    """A hash of data: arrays, tensors, file contents (Path), and JSON values."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, torch.Tensor):
            digest.update(f"{part.dtype}{tuple(part.shape)}".encode())
            part = part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype}{part.shape}".encode())
            for row in part if part.ndim > 1 else [part]:  # row by row, since it may be memory-mapped
                digest.update(np.ascontiguousarray(row).data)
        elif isinstance(part, Path):
            with open_regular(part) as file:
                while block := file.read(_BLOCK):
                    digest.update(block)
        else:
            digest.update(json.dumps(part, ensure_ascii=False, sort_keys=True).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:32]


def agree(folder: Path, fixed: Mapping[str, Any], changeable: Mapping[str, Any] | None = None, *, begun: bool) -> bool:
    """Store the settings of a new run in `folder`, or compare them with the stored ones.

    Args:
        begun: whether the run has a checkpoint; until then settings may change.

    Returns:
        Whether all fixed settings are unchanged.

    Raises:
        StudioError: a fixed setting of a begun run differs; nothing was changed.
        StoreError: `run.json` is damaged.
    """
    path = make_folder(folder) / FILE
    current: dict[str, dict[str, Any]] = json.loads(json.dumps({"fixed": fixed, "changeable": changeable or {}}))
    before = _read(path)
    others = _differing(before["fixed"], current["fixed"])
    if others and begun:
        raise StudioError(
            f"the run in `{folder}` has other settings: {'; '.join(others)}",
            hint=f"use the same options and data, choose another `--work`, or remove `{folder}` to start over",
        )
    for each in _differing(before["changeable"], current["changeable"]) if begun else ():
        print(f"note: a setting of the run in {folder} changed: {each}", file=sys.stderr)
    merged = {name: {**before[name], **current[name]} for name in current}
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
        raise StoreError(f"`{path}` is damaged: {error}", hint="remove it to resume without this check") from None


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The settings in both that differ; with the values if they are short."""
    made = []
    for name, value in now.items():
        if name in before and before[name] != value:
            short = all(len(json.dumps(each)) <= 20 for each in (before[name], value))
            made.append(f"`{name}` was {before[name]}, now {value}" if short else f"`{name}` differs")
    return made
