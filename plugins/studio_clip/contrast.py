"""The contrastive loss of a large batch in little memory: gradient caching (Gao et al. 2021, arXiv 2101.06983).

Every pair of a batch is in the loss of every other, so gradients cannot simply be accumulated. But the loss depends
only on the towers' embeddings: these are computed chunk by chunk without a graph, the loss is differentiated with
respect to them, and each chunk is computed again, with a graph, and backpropagates its part of that gradient. The
gradients are those of the whole batch, at the memory of a chunk and the cost of a second forward pass.

Try it: ``pytest tests/plugins/studio_clip/test_contrast.py``
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

Encode = Callable[[Tensor], Tensor]


def loss(image: Tensor, text: Tensor, log_scale: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    """CLIP's symmetric cross-entropy (Radford et al. 2021), and the accuracy of picture to text.

    Args:
        image, text: unit vectors (B, D) in float32; row i of one belongs to row i of the other.
        log_scale: logarithm of the inverse temperature.
        same: bool (B, B), which texts are equal: an equal text of another pair is not a negative.
    """
    diagonal = torch.eye(len(image), dtype=torch.bool, device=image.device)
    logits = (log_scale.exp() * image @ text.T).masked_fill(same & ~diagonal, -1e4)  # (B, B)
    target = torch.arange(len(image), device=image.device)
    value = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    return value, (logits.argmax(1) == target).float().mean()


def backward(
    encoders: Sequence[Encode],
    inputs: Sequence[Tensor],
    objective: Callable[..., tuple[Tensor, Tensor]],
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """Add the gradients of `objective(*embeddings)` to the parameters that the encoders and it use; return its values.

    Args:
        encoders: each computes embeddings (N, D) of inputs (N, ...), with independent rows (no batch normalisation in
            training mode).
        inputs: for each encoder its inputs (B, ...).
        objective: the loss of all embeddings, and a metric that is not differentiated.
        chunk: rows per forward pass. A batch that is not larger is computed once.

    Randomness in an encoder (dropout) is the same in both passes.
    """
    if all(len(rows) <= chunk for rows in inputs):
        value, figure = objective(*(encode(rows) for encode, rows in zip(encoders, inputs, strict=True)))
        value.backward()
        return value.detach(), figure.detach()
    parts = [rows.split(chunk) for rows in inputs]
    before: list[list[list[Tensor]]] = []
    embeddings = []
    with torch.no_grad():
        for encode, chunks in zip(encoders, parts, strict=True):
            before.append([])
            made = []
            for rows in chunks:
                before[-1].append(_random_state())
                made.append(encode(rows))
            embeddings.append(torch.cat(made))
    leaves = [each.requires_grad_() for each in embeddings]
    value, figure = objective(*leaves)
    value.backward()
    after = _random_state()
    for encode, chunks, leaf, states in zip(encoders, parts, leaves, before, strict=True):
        assert leaf.grad is not None, "the objective does not depend on an encoder"
        for rows, gradient, state in zip(chunks, leaf.grad.split(chunk), states, strict=True):
            _set_random_state(state)
            encode(rows).backward(gradient)
    _set_random_state(after)
    return value.detach(), figure.detach()


def _random_state() -> list[Tensor]:
    """The states of torch's generators: the CPU's, then each GPU's in use."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else ())]


def _set_random_state(state: list[Tensor]) -> None:
    torch.set_rng_state(state[0])
    if len(state) > 1:
        torch.cuda.set_rng_state_all(state[1:])
