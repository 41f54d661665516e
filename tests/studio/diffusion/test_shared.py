"""What one guest sets in shared modules is met by no other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.hooks import RemovableHandle

from studio.diffusion.shared import NONE, Draws, ModuleSettings, Shared


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.processor: Callable[[float], float] = lambda value: value + 1

    def forward(self, value: float) -> float:
        return self.processor(value)


class Guest:
    """Code that changes a module, the settings that it left, and what its calls return."""

    def __init__(self, number: int) -> None:
        self.number, self.settings, self.handles = number, NONE, list[RemovableHandle]()
        self.expected = 1.0

    def act(self, part: Part, what: str) -> None:
        if what == "processor":
            part.processor = lambda value: value + self.number
            self.expected = self.number + 1000.0 * len(self.handles)
        elif what == "module":
            part.processor = Added(self.number)
            self.expected = self.number + 1000.0 * len(self.handles)
        elif what == "hook":
            self.handles.append(part.register_forward_hook(lambda module, args, output: output + 1000.0))
            self.expected += 1000.0
        elif self.handles:
            self.handles.pop().remove()
            self.expected -= 1000.0


class Added(nn.Module):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, value: float) -> float:
        return value + self.number


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["processor", "module", "hook", "remove"])), max_size=12))
def test_guests_meet_their_own_settings_only(actions: list[tuple[int, str]]) -> None:
    part = Part()
    shared, guests = Shared({"unet": part}), [Guest(10 * (i + 1)) for i in range(3)]
    for who, what in actions:
        guest = guests[who]
        if what == "processor" and "processor" in part._modules:
            continue
        since = shared.apply(guest.settings)
        if what == "processor":
            part._modules.pop("processor", None)  # as diffusers does
        if what == "module":
            vars(part).pop("processor", None)
        guest.act(part, what)
        guest.settings = shared.take(guest.settings, since)
        assert part(0.0) == 1.0
        for each in guests:
            with shared.applied(each.settings):
                assert part(0.0) == each.expected
        assert part(0.0) == 1.0


def test_each_guest_draws_from_default_generators_of_its_own() -> None:
    seeds = [1, 2, 2**40]
    draws = [Draws(seed, torch.device("cpu")) for seed in seeds]
    drawn: list[list[float]] = [[] for _ in seeds]
    host = torch.get_rng_state()
    for _ in range(3):
        for numbers, each in zip(drawn, draws, strict=True):
            with each.used():
                numbers.append(float(torch.rand(())))
    assert torch.equal(torch.get_rng_state(), host)
    for numbers, seed in zip(drawn, seeds, strict=True):
        alone = torch.Generator().manual_seed(seed)
        assert numbers == [float(torch.rand((), generator=alone)) for _ in range(3)]


def test_settings_are_taken_back_after_an_error() -> None:
    part = Part()
    shared = Shared({"unet": part})
    loaded = part.processor

    def fail(value: float) -> float:
        raise torch.OutOfMemoryError("no memory left")

    with pytest.raises(torch.OutOfMemoryError), shared.applied(ModuleSettings({0: fail})):
        part(0.0)
    assert part.processor is loaded
