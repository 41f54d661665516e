"""transformers' models on `attend`, through the library's attention registry, under the name `studio`.

The registry handles masks: for a purely causal mask it passes none, which here becomes `Causal`.

Try it: ``use(GPT2LMHeadModel(config))``
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from studio.attention.bias import Bias, Causal, Dense
from studio.attention.dispatch import Dispatch, current_dispatch
from studio.errors import UsageError

NAME = "studio"


def register() -> None:
    """Register `attn_implementation="studio"` with transformers. Repeatable; changes nothing else."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def use(model: nn.Module, dispatch: Dispatch | None = None) -> None:
    """Let a transformers model call `attend`, or `dispatch`. Raises ValueError if its attention cannot be chosen."""
    register()
    for module in model.modules():
        module.studio_dispatch = dispatch  # type: ignore[assignment]  # the registered function gets the module
    model.set_attn_implementation(NAME)  # type: ignore[operator]


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """The registered function: (B, H, T, D) in, (B, T, H, D) out."""
    if dropout:
        raise UsageError(
            f"attention dropout is {dropout}; `attend` supports none", hint="set it to 0, or call `model.eval()`"
        )
    for name in ("softcap", "s_aux", "cache", "position_bias"):
        if more.get(name) is not None:
            raise UsageError(
                f"this model's attention uses `{name}`, which `attend` does not support",
                hint='use `attn_implementation="eager"`',
            )
    q, k, v = (each.transpose(1, 2) for each in (query, key, value))
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    dispatch: Dispatch = getattr(module, "studio_dispatch", None) or current_dispatch()
    return dispatch.attend(q, k, v, bias=_bias(attention_mask, causal, q, k), scale=scaling), None


def _bias(mask: Tensor | None, causal: bool, q: Tensor, k: Tensor) -> Bias | None:
    """The mask as it is; without one, causal from the top left, as in transformers: a preallocated buffer is empty
    after the tokens so far.
    """
    if mask is not None:
        return Dense(mask[..., : k.shape[1]])
    return Causal(offset=0) if causal and q.shape[1] > 1 else None
