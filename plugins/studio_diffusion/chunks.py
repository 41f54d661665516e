"""Prompts as tokens: chunks of a text tower's length, each with its begin and end, and a weight for every token.

A tower reads some 75 tokens at once. A longer prompt, and what stands behind a `BREAK`, is encoded in further chunks,
whose states the net attends to together, as A1111's web UI does it. Knows nothing of towers.

Try it: ``chunks("a (red:1.4) apple", tokenizer)[0][0]`` gives the token ids and weights of the first chunk
"""

from __future__ import annotations

from typing import Any

from studio_diffusion import prompts

MOST = 8
"""Chunks of a prompt; what is left is told to be cut."""

Chunk = tuple[tuple[int, ...], tuple[float, ...]]


def chunks(text: str, tokenizer: Any) -> tuple[list[Chunk], str]:
    """Token ids with their weights of each chunk, unpadded, and what had to be cut. Raises ValueError as `read`."""
    inside = tokenizer.model_max_length - 2
    begin, end = tokenizer("").input_ids[0], tokenizer("").input_ids[-1]
    made: list[Chunk] = []
    for part in prompts.read(text).parts:
        ids: list[int] = []
        weights: list[float] = []
        for piece, weight in part:
            more = tokenizer(piece, verbose=False).input_ids[1:-1]  # not verbose: what is cut is told
            ids += more
            weights += [weight] * len(more)
        for at in range(0, max(1, len(ids)), inside):
            made.append(((begin, *ids[at : at + inside], end), (1.0, *weights[at : at + inside], 1.0)))
    left = [token for ids, _ in made[MOST:] for token in ids[1:-1]]
    return made[:MOST], tokenizer.decode(left).strip()


def notices(text: str, cut: str, name: str, tokenizer: Any) -> tuple[str, ...]:
    """What is to be told of a prompt; `name` says which it is."""
    long = f"the {name} is longer than {MOST * (tokenizer.model_max_length - 2)} tokens; left out: “{cut}”"
    return (*prompts.read(text).notices, *([long] if cut else []))
