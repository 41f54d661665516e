"""What a request has of keys and values, and a step of many requests over what they have.

A `Cache` is a request's own memory, and `Apart` a step over such caches: what a CPU does best, as each request is
served by the kernel for its length. On a GPU `pool.py` has another pair with the same interface. This module knows
nothing of the decoder but its shape.

Try it: ``pytest tests/plugins/studio_gpt/test_model.py``
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from studio.attention import Causal, attend, attend_rows

if TYPE_CHECKING:
    from studio_gpt.model import Config

Watch = Callable[[int, Tensor, Tensor, Tensor], object]


class Cache:
    """Keys and values of one request, with room for `room` tokens.

    It does not know how many it has: whoever uses it says where to write (`Piece.start`), and what stands behind is of
    no account. So a step that is made again, or not at all, leaves nothing wrong.

    Attributes:
        kv: (layers, 2, room, kv_heads, head_dim).
    """

    def __init__(self, config: Config, room: int, dtype: torch.dtype, device: torch.device) -> None:
        self.kv = torch.empty(config.layers, 2, room, config.kv_heads, config.head_dim, dtype=dtype, device=device)

    @property
    def room(self) -> int:
        """Tokens that it can hold."""
        return self.kv.shape[2]

    def together(self, pieces: Sequence[Piece], config: Config) -> Together:
        """A step of pieces with caches such as this one."""
        return Apart(pieces, config.windows, self.kv.device)


class Held(Protocol):
    """Where a request's keys and values are: a `Cache`, or on a GPU a `pool.Span`."""

    @property
    def kv(self) -> Tensor:
        """(layers, 2, room, kv_heads, head_dim)."""

    @property
    def room(self) -> int:
        """Tokens that it can hold."""

    def together(self, pieces: Sequence[Piece], config: Config) -> Together:
        """A step of pieces whose caches are all of this kind."""


@dataclass(frozen=True)
class Piece:
    """What one request brings to `GPT.decode`.

    Attributes:
        tokens: the next tokens, at least one; they stand at `start` and after.
        cache: holds what stands before `start`, and takes up these.
        wanted: for how many of the last of these tokens logits are wanted.
    """

    tokens: Sequence[int]
    start: int
    cache: Held
    wanted: int = 1


class Together:
    """A step of several requests, whose tokens stand packed in a row.

    Attributes:
        tokens, positions: (N,) on the device, of all pieces.
        wanted: the places in the row of which logits are wanted; None is all.
    """

    def __init__(self, tokens: Tensor, positions: Tensor, wanted: Tensor | None) -> None:
        self.tokens, self.positions, self.wanted = tokens, positions, wanted

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write keys and values of a layer and attend: q (N, H, D), k and v (N, G, D)."""
        raise NotImplementedError


class Apart(Together):
    """On a CPU: each piece writes into a cache of its own and looks at what is there, with the kernel best for it."""

    def __init__(self, pieces: Sequence[Piece], windows: Sequence[int | None], device: torch.device) -> None:
        tokens = torch.tensor([token for piece in pieces for token in piece.tokens], device=device)
        places = [place for piece in pieces for place in range(piece.start, piece.start + len(piece.tokens))]
        ends = _ends(pieces)
        wanted = torch.tensor(ends, dtype=torch.long, device=device) if len(ends) < len(places) else None
        super().__init__(tokens, torch.tensor(places, device=device), wanted)
        self.pieces, self.windows = pieces, windows
        self.single = all(len(piece.tokens) == 1 for piece in pieces)
        if self.single:
            self.rows = [_Row(piece, windows) for piece in pieces]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See Together."""
        if self.single:
            torch._foreach_copy_([row.due[layer] for row in self.rows], list(torch.stack((k, v), 1)))
            seen = [row.seen[layer] for row in self.rows]
            return attend_rows(q, [k for k, _ in seen], [v for _, v in seen])  # (N, H, D)
        made, at = [], 0
        for piece in self.pieces:
            here = slice(at, at := at + len(piece.tokens))
            start, end, window = piece.start, piece.start + len(piece.tokens), self.windows[layer]
            kv = piece.cache.kv[layer]  # (2, room, G, D)
            kv[0, start:end], kv[1, start:end] = k[here], v[here]
            keys, values = kv[:, None, _first(start, window) : end]  # (1, K, G, D) each
            made.append(attend(q[here][None], keys, values, bias=Causal(window=window))[0])  # (n, H, D)
        return torch.cat(made)  # (N, H, D)


class _Row:
    """One token of a request: where its keys and values go, and those that it sees, made ready for all layers at once,
    since a view costs as much as a small kernel.
    """

    def __init__(self, piece: Piece, windows: Sequence[int | None]) -> None:
        kv, end = piece.cache.kv, piece.start + 1  # (layers, 2, room, G, D)
        cuts = {each: kv[:, :, None, _first(piece.start, each) : end].flatten(0, 1).unbind() for each in {*windows}}
        self.due = kv[:, :, piece.start].unbind()  # a layer: (2, G, D)
        self.seen = [cuts[each][2 * i : 2 * i + 2] for i, each in enumerate(windows)]  # a layer: (1, K, G, D) twice


def _first(start: int, window: int | None) -> int:
    """The first token that one at `start` sees."""
    return 0 if window is None else max(0, start + 1 - window)


def _ends(pieces: Sequence[Piece]) -> list[int]:
    """Where in the packed row the wanted tokens stand."""
    ends: list[int] = []
    at = 0
    for piece in pieces:
        at += len(piece.tokens)
        ends += range(at - piece.wanted, at)
    return ends
