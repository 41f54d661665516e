"""Select, replace and upload rows of a batch without synchronizing with the GPU.

Indexing with a list, `torch.tensor(list, device=…)` and `.to(device)` of pageable memory all wait for the GPU. Stacking
views of rows does not, and numbers are uploaded in one copy.

Try it: ``columns(torch.device("cpu"), [1.0, 2.0], [3.0])[0].shape`` is (2, 1, 1, 1)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from studio import devices

T = TypeVar("T")


def column(device: torch.device, *lists: Sequence[float]) -> Tensor:
    """All numbers of the lists, concatenated, as float32 (n, 1, 1, 1) on the device."""
    numbers = torch.tensor([number for each in lists for number in each], dtype=torch.float32)
    return devices.upload(numbers, device)[:, None, None, None]


def columns(device: torch.device, *lists: Sequence[float]) -> list[Tensor]:
    """Each list of n numbers as float32 (n, 1, 1, 1) on the device."""
    return list(column(device, *lists).split_with_sizes([len(each) for each in lists]))


def select_rows(x: Tensor, numbers: Sequence[int]) -> Tensor:
    """The rows of x (B, …) at these indices, one or more; x itself if they are all rows in order."""
    if list(numbers) == list(range(len(x))):
        return x
    return torch.stack([x[i] for i in numbers])


def replace_rows(x: Tensor, numbers: Sequence[int], rows: Tensor) -> Tensor:
    """x (B, …) with `rows` in place of those at these ascending indices."""
    if len(numbers) == len(x):
        return rows
    others = dict(zip(numbers, rows, strict=True))
    return torch.stack([others.get(i, x[i]) for i in range(len(x))])


def guided_first(guided: Sequence[bool]) -> list[int]:
    """The indices of rows with the guided ones first, so that a step depends only on how many they are."""
    return sorted(range(len(guided)), key=lambda i: not guided[i])


def restore_order(order: Sequence[int], results: Sequence[T]) -> list[T]:
    """The results for rows at the indices `order`, back in their original order."""
    by_index = dict(zip(order, results, strict=True))
    return [by_index[i] for i in range(len(by_index))]
