"""What the plugin adds to `Studio`: pictures ranked and labelled, texts and pictures embedded. `search` is beside it.

Lists of any length are taken: they are given to the generators in parts, and files are opened a few at a time. Each
function also takes what `Studio.submit` takes besides inputs: `priority`, `client` and `time_limit_s`. This module
knows nothing of terminals.

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

AT_ONCE = 256  # requests that `embed` has under way

Picture: TypeAlias = "Image | Path | str | PIL.Image.Image | NDArray[Any] | torch.Tensor"


def rank(
    studio: Studio, text: str, pictures: Iterable[Picture], *, model: str = "", follow: Follow = lambda _: None,
    **request: Any,
) -> list[float]:  # fmt: skip
    """How well each picture goes with a text in English or Chinese: their cosine by CLIP, in the order of the pictures.

    `pictures` are images of Studio or PIL, arrays or paths of files; `model` is a CLIP folder or a pulled one (default:
    Studio's own). `follow` is called with every request that is made. Raises MediaError for a file that cannot be read,
    and as `Studio.submit`.
    """
    given = {"text": text, "model": model, **request}
    return [score for made in _each_part(studio, "clip-rank", pictures, follow, given) for score in scores(made)]


def label(
    studio: Studio, pictures: Iterable[Picture], labels: Sequence[str], *, prompt: str = "{}", top: int = 5,
    model: str = "", follow: Follow = lambda _: None, **request: Any,
) -> list[list[dict[str, Any]]]:  # fmt: skip
    """The `top` likeliest of the labels for each picture, by CLIP: `{"label", "share"}`, the likeliest first.

    The shares of all labels of a picture sum to 1. `prompt` is what is said of a label, which stands for ``{}``. Raises
    as `rank`.
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
    """Unit vectors by CLIP: of a text (`str`) or a picture (an image of Studio or PIL, an array, a `Path` of a file),
    or of each of several.

    The cosine of two vectors says how well the two go together. They are kept in the store only if `stored`. Raises as
    `rank`.
    """
    from studio.engine.ticket import wait

    if isinstance(what, str | Path | Image) or arrays.is_pil(what) or arrays.is_array(what):
        one: list[Any] = [what]
        return embed(studio, one, model=model, stored=stored, **request)[0]
    made: list[Media] = []
    every: Iterator[Any] = iter(what)  # type: ignore[arg-type]  # mypy knows not what `is_array` says of it
    while some := list(islice(every, AT_ONCE)):
        asked = [{"text": each} if isinstance(each, str) else {"image": each} for each in some]
        made += wait([studio.submit("embed", model=model, stored=stored, **each, **request) for each in asked])
    return [each for each in made if isinstance(each, Embedding)]


def scores(made: Media) -> list[float]:
    """The scores that `clip-rank` made, in the order of the pictures."""
    return [float(each) for each in made.vector] if isinstance(made, Embedding) else []


def labelled(made: Media) -> list[list[dict[str, Any]]]:
    """What `clip-label` made, in the order of the pictures."""
    told: list[list[dict[str, Any]]] = json.loads(str(made))
    return told


def _each_part(
    studio: Studio, generator: str, pictures: Iterable[Picture], follow: Follow, given: dict[str, Any]
) -> Iterable[Media]:
    for images in parts(pictures):
        ticket = studio.submit(generator, images=images, stored=False, **given)
        follow(ticket)
        yield ticket.result()
