"""The methods that the plugin adds to `Studio`: `rank`, `label` and `embed`; `search` is in its own module.

Lists may have any length: they are split into requests, and files are opened a few at a time. Each function also
accepts the options of `Studio.submit`: `priority`, `client` and `time_limit_s`.

Try it: ``studio.Studio().rank("a red apple", ["one.png", "two.png"])``
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, overload

from studio.media import Embedding, Image, arrays
from studio_clip.batches import Follow, parts

if TYPE_CHECKING:
    import PIL.Image
    import torch
    from numpy.typing import NDArray

    from studio.api import Studio
    from studio.media import Media

AT_ONCE = 256  # concurrent requests of `embed`

Picture: TypeAlias = "Image | Path | str | PIL.Image.Image | NDArray[Any] | torch.Tensor"


def rank(
    studio: Studio, text: str, pictures: Iterable[Picture], *, model: str = "", follow: Follow = lambda _: None,
    **request: Any,
) -> list[float]:  # fmt: skip
    """The cosine similarity of each picture with a text (English or Chinese) by CLIP, in the order of the pictures.

    `pictures` are images of Studio or PIL, arrays or file paths; `model` is a pulled model or a CLIP folder (default:
    Studio's starter). `follow` is called with every ticket. Raises MediaError for a file that cannot be read, and as
    `Studio.submit`.
    """
    given = {"text": text, "model": model, **request}
    return [score for made in _each_part(studio, "clip-rank", pictures, follow, given) for score in scores(made)]


def label(
    studio: Studio, pictures: Iterable[Picture], labels: Sequence[str], *, prompt: str = "{}", top: int = 5,
    model: str = "", follow: Follow = lambda _: None, **request: Any,
) -> list[list[dict[str, Any]]]:  # fmt: skip
    """Zero-shot classification by CLIP: the `top` labels of each picture as `{"label", "share"}`, the most likely
    first.

    `share` is a probability: those of all labels of a picture sum to 1. `prompt` is a template, in which ``{}`` is
    replaced by the label. Raises as `rank`.
    """
    given = {"labels": list(labels), "prompt": prompt, "top": top, "model": model, **request}
    return [row for made in _each_part(studio, "clip-label", pictures, follow, given) for row in labelled(made)]


@overload
def embed(studio: Studio, what: Picture, *, model: str = "", stored: bool = False, **request: Any
          ) -> Embedding: ...  # fmt: skip
@overload
def embed(studio: Studio, what: Iterable[Picture], *, model: str = "", stored: bool = False, **request: Any
          ) -> list[Embedding]: ...  # fmt: skip
def embed(
    studio: Studio, what: Picture | Iterable[Picture], *, model: str = "", stored: bool = False,
    **request: Any,
) -> Embedding | list[Embedding]:  # fmt: skip
    """CLIP embeddings (unit vectors) of a text (`str`) or a picture (an image of Studio or PIL, an array, a `Path`), or
    of several.

    The cosine similarity of two embeddings says how well they match. They are saved in the store only if `stored`.
    Raises as `rank`.
    """
    from studio.engine.ticket import wait

    if isinstance(what, str | Path | Image) or arrays.is_pil(what) or arrays.is_array(what):
        one: list[Any] = [what]
        return embed(studio, one, model=model, stored=stored, **request)[0]
    made: list[Media] = []
    every: Iterator[Any] = iter(what)  # type: ignore[arg-type]  # mypy cannot narrow by `is_array`
    while some := list(islice(every, AT_ONCE)):
        asked = [{"text": each} if isinstance(each, str) else {"image": each} for each in some]
        made += wait([studio.submit("embed", model=model, stored=stored, **each, **request) for each in asked])
    return [each for each in made if isinstance(each, Embedding)]


def scores(made: Media) -> list[float]:
    """The scores in the output of `clip-rank`, in the order of the pictures."""
    return [float(each) for each in made.vector] if isinstance(made, Embedding) else []


def labelled(made: Media) -> list[list[dict[str, Any]]]:
    """The labels in the output of `clip-label`, in the order of the pictures."""
    labels: list[list[dict[str, Any]]] = json.loads(str(made))
    return labels


def _each_part(
    studio: Studio, generator: str, pictures: Iterable[Picture], follow: Follow, given: dict[str, Any]
) -> Iterable[Media]:
    for images in parts(pictures):
        ticket = studio.submit(generator, images=images, stored=False, **given)
        follow(ticket)
        yield ticket.result()
