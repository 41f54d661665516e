"""Rows of a step on a device, without a wait for it: numbers go there in one copy, and no index goes there at all.

A list as an index, `torch.tensor(list, device=…)` and `.to(device)` of ordinary memory all wait until a GPU has done
what was queued. Views of rows that are joined again do not.

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
    """All numbers of the lists, one after another, as float32 (n, 1, 1, 1) on the device."""
    numbers = torch.tensor([number for each in lists for number in each], dtype=torch.float32)
    return devices.upload(numbers, device)[:, None, None, None]


def columns(device: torch.device, *lists: Sequence[float]) -> list[Tensor]:
    """Each list of n numbers as float32 (n, 1, 1, 1) on the device."""
    return list(column(device, *lists).split([len(each) for each in lists]))


def chosen(x: Tensor, numbers: Sequence[int]) -> Tensor:
    """The rows of x (B, …) with these numbers, one or more; x itself where they are all, in order."""
    if list(numbers) == list(range(len(x))):
        return x
    return torch.stack([x[i] for i in numbers])


def replaced(x: Tensor, numbers: Sequence[int], rows: Tensor) -> Tensor:
    """x (B, …) with `rows` in place of those with these numbers, which rise."""
    if len(numbers) == len(x):
        return rows
    others = dict(zip(numbers, rows, strict=True))
    return torch.stack([others.get(i, x[i]) for i in range(len(x))])


def guided_first(guided: Sequence[bool]) -> list[int]:
    """The numbers of rows, of which the guided ones come first: so how many these are is all that a step depends on."""
    return sorted(range(len(guided)), key=lambda i: not guided[i])


def in_place(order: Sequence[int], made: Sequence[T]) -> list[T]:
    """What was made of the rows of these numbers, in the order of the numbers."""
    of = dict(zip(order, made, strict=True))
    return [of[i] for i in range(len(of))]
