"""open_clip's towers on `attend`: a replacement for `torch.nn.MultiheadAttention`, of which they are built.

`nn.MultiheadAttention` chooses its kernel internally, and open_clip has no attention registry, so the module's class is
replaced by one with the same weights and names.

Try it: ``use(open_clip.create_model("ViT-B-32"))``
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import linear

from studio.attention.bias import Dense
from studio.attention.dispatch import Dispatch, current_dispatch


class StudioMultiheadAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` with the same parameters, whose forward calls `attend`."""

    dispatch: Dispatch | None = None

    def forward(  # type: ignore[override]  # open_clip passes these and reads the first result
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False, attn_mask: Tensor | None = None,
        **more: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        """(B, T, W), or (T, B, W) if not `batch_first`."""
        given = (query, key, value) if self.batch_first else tuple(each.transpose(0, 1) for each in (query, key, value))
        weights = self.in_proj_weight.chunk(3)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = (
            linear(x, w, b).unflatten(-1, (self.num_heads, -1))  # type: ignore[no-untyped-call]  # (B, T, H, D)
            for x, w, b in zip(given, weights, biases, strict=True)
        )
        made = (self.dispatch or current_dispatch()).attend(q, k, v, bias=_bias(attn_mask, q)).flatten(2)
        made = self.out_proj(made)
        return (made if self.batch_first else made.transpose(0, 1)), None


def _bias(mask: Tensor | None, q: Tensor) -> Dense | None:
    """torch's mask: True is *masked*, floats are added; (T, T) or (B * H, T, T)."""
    if mask is None:
        return None
    mask = ~mask if mask.dtype.is_floating_point is False else mask.to(q.dtype)
    return Dense(mask.unflatten(0, (q.shape[0], q.shape[2])) if mask.dim() == 3 else mask)  # type: ignore[no-untyped-call]


def use(model: nn.Module, dispatch: Dispatch | None = None) -> list[str]:
    """Let every `nn.MultiheadAttention` of `model` call `attend`; return the names of those that cannot."""
    left = []
    for name, module in model.named_modules():
        if type(module) is not nn.MultiheadAttention:
            continue
        odd = module.in_proj_weight is None or module.bias_k is not None or module.add_zero_attn or module.dropout
        if odd:
            left.append(name)
            continue
        module.__class__ = StudioMultiheadAttention
        module.dispatch = dispatch  # type: ignore[assignment]
    return left
