"""Prompts with weights, `BREAK`, or more than one chunk of tokens, for diffusers models with CLIP text encoders.

Such a prompt is encoded here, chunk by chunk, and given to the pipeline as embeddings. A weight multiplies the
difference of a token's state from that of the empty text. Stable Diffusion has one encoder, SDXL two, of which the
last but one states are joined; the pooled state is that of the first chunk.

Try it: ``pytest tests/plugins/studio_diffusion/test_embeds.py``
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from studio.diffusion import prompts, stepping
from studio.diffusion.arguments import parameters
from studio.diffusion.chunks import chunks
from studio.diffusion.chunks import notices as prompt_notices
from studio.diffusion.stepping import PipelineModel


def encoders(pipe: Any) -> list[tuple[str, Any]]:
    """The CLIP text encoders of a pipeline, by their names, with their tokenizers; empty for other families."""
    takes = parameters(pipe)
    found = [(name, getattr(pipe, name, None)) for name in ("text_encoder", "text_encoder_2", "text_encoder_3")]
    kinds = [type(each) for _, each in found if each is not None]
    one = kinds == [CLIPTextModel] and "prompt_embeds" in takes and "pooled_prompt_embeds" not in takes
    two = kinds == [CLIPTextModel, CLIPTextModelWithProjection] and "pooled_prompt_embeds" in takes
    made = [(name, getattr(pipe, name.replace("text_encoder", "tokenizer"))) for name, _ in found[: one + 2 * two]]
    return [] if any(tokenizer is None for _, tokenizer in made) else made


def needed(pipe: Any, texts: Sequence[str], clip_skip: int | None = None) -> bool:
    """Whether a prompt of these is more than one chunk of plain text, for a pipeline with CLIP text encoders, or layers
    of its only one are skipped, which diffusers 0.42 does not support with transformers 5.
    """
    found = encoders(pipe)
    if clip_skip is not None and len(found) == 1:
        return True
    return bool(found) and any(
        not prompts.read(text).plain or len(chunks(text, tokenizer)[0]) > 1 for text in texts for _, tokenizer in found
    )


def embeddings(
    model: PipelineModel, pipe: Any, prompt: str, negative: str, clip_skip: int | None = None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The arguments for the embeddings of a prompt and a negative prompt, and notices.

    `clip_skip` is how many of the encoders' last layers are skipped, besides the one that SDXL skips.
    """
    with stepping.plain_mode():
        wanted, pooled, notices = _encode(model, pipe, prompt, "prompt", clip_skip)
        zeros = bool(pipe.config.get("force_zeros_for_empty_prompt")) and not negative
        unwanted, negative_pooled, more = _encode(model, pipe, negative, "negative prompt", clip_skip)
        most = max(wanted.shape[1], unwanted.shape[1])
        empty, _, _ = _encode(model, pipe, "", "", clip_skip)
        wanted, unwanted = (_padded(each, empty, most) for each in (wanted, unwanted))
        if zeros:
            unwanted, negative_pooled = torch.zeros_like(unwanted), torch.zeros_like(negative_pooled)
    made = {"prompt_embeds": wanted, "negative_prompt_embeds": unwanted}
    if len(encoders(pipe)) == 2:
        made |= {"pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": negative_pooled}
    return made, (*notices, *more)


def _padded(states: Tensor, empty: Tensor, length: int) -> Tensor:
    missing = (length - states.shape[1]) // empty.shape[1]
    return torch.cat([states, *[empty] * missing], 1)


def _encode(
    model: PipelineModel, pipe: Any, text: str, what: str, clip_skip: int | None
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """States (1, T, W) and the pooled state (1, P) of a text; the notices say what was cut."""
    states: list[Tensor] = []
    notices: tuple[str, ...] = ()
    pooled = torch.zeros(0)
    for name, tokenizer in encoders(pipe):
        found, cut = chunks(text, tokenizer)
        layer = (clip_skip or 0) + len(encoders(pipe))  # from the end; SDXL takes the last but one
        each, pooled = _of_one(model, name, tokenizer, found, layer, normed=len(encoders(pipe)) == 1)
        states.append(each)
        notices = prompt_notices(text, cut, what, tokenizer)
    shortest = min(each.shape[1] for each in states)
    return torch.cat([each[:, :shortest] for each in states], -1), pooled, notices


def _of_one(
    model: PipelineModel, name: str, tokenizer: Any, found: Sequence[Any], layer: int, *, normed: bool
) -> tuple[Tensor, Tensor]:
    """Weighted states (1, T, W) of one encoder's `layer`, counted from the end from 1 and `normed` by its final layer
    norm or not; and its first output for the first chunk.
    """
    length, module = tokenizer.model_max_length, model.components[name]

    def states(ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        padded = [*ids, *[tokenizer.pad_token_id] * (length - len(ids))]
        output = module(torch.tensor([padded], device=model.device), output_hidden_states=True)
        hidden = output.hidden_states[-layer]
        norm: Any = getattr(module, "text_model", module).final_layer_norm
        return (norm(hidden) if normed else hidden), output[0]

    made, pooled = [], None
    for ids, weights in found:
        each, first = states(ids)
        pooled = first if pooled is None else pooled
        if set(weights) != {1.0}:
            empty, _ = states((ids[0], ids[-1]))
            share = torch.tensor([*weights, *[1.0] * (length - len(weights))], device=each.device)[None, :, None]
            each = torch.lerp(empty.float(), each.float(), share).to(each.dtype)
        made.append(each)
    assert pooled is not None
    return torch.cat(made, 1), pooled
