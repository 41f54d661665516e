"""A module larger than the memory for it: its layers come from the file when they are called, and go again after.

Submodules up to a limit are groups; larger ones are looked into, except torch's own layers, which use their parts'
weights without calling them. What is directly in a module that was looked into, what is tied, and what is small stays.
Results are those of the loaded module, byte for byte. This module knows nothing of ledgers or engines.

Try it: ``pytest tests/studio/test_weights.py``
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from studio.weights import SMALL

if TYPE_CHECKING:
    from studio.weights import Streaming, Tensors


def stream(made: torch.nn.Module, source: Tensors, names: Mapping[str, str], how: Streaming) -> set[int]:
    """Hook the groups of a module whose parameters are on meta; returns the ids of the parameters that are streamed.

    `names` maps a parameter's first name to its name in the source; one that is not a key has been tied to another.
    """
    places = Counter(id(parameter) for _, parameter in made.named_parameters(remove_duplicate=False))
    prefixes = {id(each): prefix for prefix, each in made.named_modules()}
    streamed: set[int] = set()
    for group in _groups(made, how.limit, source.dtype):
        prefix = prefixes[id(group)]
        own = [
            (owner, leaf, parameter, ".".join(filter(None, (prefix, inner, leaf))))
            for inner, owner in group.named_modules()
            for leaf, parameter in owner._parameters.items()
            if parameter is not None and places[id(parameter)] == 1
        ]
        size = sum(_bytes(parameter, source.dtype) for _, _, parameter, _ in own)
        if size < SMALL:
            continue
        streamed |= {id(parameter) for _, _, parameter, _ in own}
        how.largest = max(how.largest, size)
        _hook(group, [(owner, leaf, parameter, names[name]) for owner, leaf, parameter, name in own], source)
    return streamed


def _groups(whole: torch.nn.Module, limit: int, dtype: torch.dtype) -> Iterator[torch.nn.Module]:
    """The submodules that come and go as one. The whole is none: its methods may be called past its hooks."""
    for child in whole.children():
        size = sum(_bytes(parameter, dtype) for parameter in child.parameters())
        container = isinstance(child, torch.nn.ModuleList | torch.nn.ModuleDict)  # never called itself
        sealed = type(child).__module__.startswith("torch.nn.modules") and not isinstance(child, torch.nn.Sequential)
        if not container and (size <= limit or sealed or not any(True for _ in child.children())):
            yield child
        else:
            yield from _groups(child, limit, dtype)


def _bytes(parameter: torch.nn.Parameter, dtype: torch.dtype) -> int:
    return parameter.numel() * (dtype.itemsize if parameter.is_floating_point() else parameter.itemsize)


def _hook(
    group: torch.nn.Module, own: list[tuple[torch.nn.Module, str, torch.nn.Parameter, str]], source: Tensors
) -> None:
    def come(_: torch.nn.Module, given: Any) -> None:
        for owner, leaf, _parameter, name in own:
            owner._parameters[leaf] = torch.nn.Parameter(source.read(name), requires_grad=False)

    def go(_: torch.nn.Module, given: Any, made: Any) -> None:
        for owner, leaf, parameter, _name in own:
            owner._parameters[leaf] = parameter

    group.register_forward_pre_hook(come)
    group.register_forward_hook(go, always_call=True)
