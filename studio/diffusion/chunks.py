"""Prompts as tokens: chunks of the text encoder's length, each with begin and end tokens, and a weight per token.

A CLIP text encoder takes 75 tokens. A longer prompt, and the text after a `BREAK`, is encoded in further chunks, whose
states the U-Net attends to together, as in A1111's web UI.

Try it: ``chunks("a (red:1.4) apple", tokenizer)[0][0]`` gives the token ids and weights of the first chunk
"""

from __future__ import annotations

from typing import Any

from studio.diffusion import prompts

MOST = 8
"""The most chunks of a prompt; the rest is cut, with a notice."""

Chunk = tuple[tuple[int, ...], tuple[float, ...]]


def chunks(text: str, tokenizer: Any) -> tuple[list[Chunk], str]:
    """The token ids and weights of each chunk, unpadded, and the text that was cut. Raises ValueError as `read`."""
    inside = tokenizer.model_max_length - 2
    begin, end = tokenizer("").input_ids[0], tokenizer("").input_ids[-1]
    made: list[Chunk] = []
    for part in prompts.read(text).parts:
        ids: list[int] = []
        weights: list[float] = []
        for piece, weight in part:
            more = tokenizer(piece, verbose=False).input_ids[1:-1]  # not verbose: a notice reports what is cut
            ids += more
            weights += [weight] * len(more)
        for at in range(0, max(1, len(ids)), inside):
            made.append(((begin, *ids[at : at + inside], end), (1.0, *weights[at : at + inside], 1.0)))
    left = [token for ids, _ in made[MOST:] for token in ids[1:-1]]
    return made[:MOST], tokenizer.decode(left).strip()


def notices(text: str, cut: str, name: str, tokenizer: Any) -> tuple[str, ...]:
    """The notices for a prompt; `name` is `prompt` or `negative prompt`."""
    long = f"the {name} is longer than {MOST * (tokenizer.model_max_length - 2)} tokens; cut: “{cut}”"
    return (*prompts.read(text).notices, *([long] if cut else []))
