"""diffusers' U-Nets, autoencoders and DiT on `attend`, by an attention processor.

It replaces diffusers' default processor. Blocks with another one (added keys, adapters, joint attention) compute
something else; they stay as they are and are named in the result.

Try it: ``use(unet)`` on any `UNet2DConditionModel`, `AutoencoderKL` or `DiTTransformer2DModel`
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from studio.attention.bias import Dense
from studio.attention.dispatch import Dispatch, current_dispatch


class StudioAttnProcessor:
    """An attention processor, like `AttnProcessor2_0`, that calls `attend`."""

    def __init__(self, dispatch: Dispatch | None = None) -> None:
        self._dispatch = dispatch

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Project, attend and project back: (B, T, W), or (B, W, height, width) of image features, as given."""
        residual = hidden_states
        x = hidden_states if attn.spatial_norm is None else attn.spatial_norm(hidden_states, temb)
        if x.ndim == 4:
            x = x.flatten(2).transpose(1, 2)  # (B, T, W)
        if attn.group_norm is not None:
            x = attn.group_norm(x.transpose(1, 2)).transpose(1, 2)
        seen = x if encoder_hidden_states is None else encoder_hidden_states
        if encoder_hidden_states is not None and attn.norm_cross:
            seen = attn.norm_encoder_hidden_states(seen)
        q, k, v = (  # (B, T, H, D); a view, as `unflatten` takes three times as long
            each.view(each.shape[0], each.shape[1], attn.heads, -1)
            for each in (attn.to_q(x), attn.to_k(seen), attn.to_v(seen))
        )
        q = q if attn.norm_q is None else attn.norm_q(q)
        k = k if attn.norm_k is None else attn.norm_k(k)
        bias = None if attention_mask is None else self._bias(attn, attention_mask, k)
        made = (self._dispatch or current_dispatch()).attend(q, k, v, bias=bias).flatten(2)  # (B, T, W)
        made = attn.to_out[1](attn.to_out[0](made))
        if residual.ndim == 4:
            made = made.transpose(-1, -2).reshape(residual.shape)
        if attn.residual_connection:
            made = made + residual
        factor = attn.rescale_output_factor
        return made if factor == 1 else made / factor  # type: ignore[no-any-return]

    @staticmethod
    def _bias(attn: Any, mask: Tensor, k: Tensor) -> Dense:
        """The model's attention mask as (B, H, 1 or Q, K)."""
        wide = attn.prepare_attention_mask(mask, k.shape[1], k.shape[0])  # (B * H, 1 or Q, K)
        return Dense(wide.unflatten(0, (k.shape[0], attn.heads)).to(k.dtype))


def use(model: nn.Module, dispatch: Dispatch | None = None) -> list[str]:
    """Let every block of `model` with a default processor call `attend`; return the names of the other blocks."""
    from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0

    left = []
    for name, module in model.named_modules():
        if not isinstance(module, Attention):
            continue
        plain = type(module.processor) in (AttnProcessor, AttnProcessor2_0, StudioAttnProcessor)
        if plain and module.added_kv_proj_dim is None:
            module.set_processor(StudioAttnProcessor(dispatch))
        else:
            left.append(name)
    return left
