"""Running an evaluation: generate pictures, embed them, and compute the metrics.

Generating and embedding are workflows with a result cache: existing results are reused, and an interrupted evaluation
continues. A plugin's embedder computes the vectors.

Try it: ``studio eval dcgan --data pictures``
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from studio.errors import InputError, UnknownName, UsageError
from studio.evaluation import copying, data, frechet, manifold
from studio.evaluation.measure import Figure, Vectors, measure
from studio.media import Embedding, Image
from studio.spec import Priority
from studio.workflow import Workflow

if TYPE_CHECKING:
    from studio.api import Studio
    from studio.evaluation.speed import Speed
    from studio.extensions import Embedder
    from studio.workflow import FlowResult, Graph

ASKING = ("prompt", "of", "label", "text")
"""Inputs that may take a label, the first that a generator has."""

Display = Callable[["Graph"], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        pictures: the generated pictures in their original size; `wanted` has their labels, or is empty.
        reference: the reference pictures.
        size: the side in pixels to which all were resized.
        nearest: for each picture the nearest reference picture.
        setup: generator, inputs, counts and encoder, as JSON.
        speed: None if it was not measured.
    """

    generator: str
    pictures: list[Image]
    wanted: list[str]
    reference: data.ReferenceSet
    size: int
    figures: list[Figure]
    nearest: copying.NearestNeighbours
    setup: dict[str, Any]
    speed: Speed | None = None
    notices: tuple[str, ...] = field(default=())


def evaluate(
    host: Studio,
    generator: str,
    folder: Path | str,
    *,
    n: int = 200,
    inputs: Mapping[str, Any] | None = None,
    by: str | None = None,
    size: int | None = None,
    seed: int = 0,
    fresh: bool = False,
    embedder: str | None = None,
    display: Display | None = None,
    client: str = "",
    priority: Priority = "interactive",
    time_limit_s: float | None = None,
) -> Evaluation:
    """Generate n pictures and compare them with those in a folder.

    Args:
        n: the number of pictures, from 50 to 1000; the folder's labels are used in a shuffled order.
        inputs: other inputs of the generator.
        by: the input that gets a label (None: `prompt`, `of`, `label` or `text`, if the folder has labels).
        size: the side to which all pictures are resized, on white (None: the smaller of both).
        seed: of the first picture; the others have the next seeds.
        fresh: ignore cached results.
        embedder: the name of the embedder (None: the first that a plugin offers).
        display: shows a graph while it runs, with `show` for its reports.
        client, priority, time_limit_s: as in `Studio.submit`.

    Raises UsageError for too few pictures, UnknownName, InputError, and the first failure of a picture.
    """
    if not frechet.FEWEST <= n <= data.MOST:
        message = f"`n` is {n}, but must be a whole number from {frechet.FEWEST} to {data.MOST}"
        raise InputError("n", message, hint="a Fréchet distance of fewer images is meaningless")
    if host.generator(generator).output is not Image:
        kind = host.generator(generator).output.kind
        raise UsageError(f"`{generator}` generates {kind}; only images can be evaluated", hint="use an image generator")
    chosen = embedder_of(host, embedder)
    reference = data.read(Path(folder), frechet.FEWEST)
    by = _by(host, generator, by, labelled=bool(reference.labels))
    wanted = prompts(reference.labels, n) if by else []
    given = settings(host, generator, dict(inputs or {}), by, wanted)
    options = {"fresh": fresh, "client": client, "priority": priority, "time_limit_s": time_limit_s}
    labels = {"labels": wanted} if by else {}
    made = _run(host, _making(generator, given, by, n, seed), display, options, labels)
    pictures: list[Image] = made["pictures"]
    size = size or min(max(pictures[0].size), max(reference.images[0].size))
    sides = {"generated": pictures, "reference": reference.images}
    alike = {name: [data.fitted(each, size) for each in images] for name, images in sides.items()}
    names = sorted(set(wanted)) if chosen.texts else []
    seen = _run(host, _looking(chosen, bool(names)), display, options, alike | ({"labels": names} if names else {}))
    x, y = (_rows(seen[f"{name}_vectors"], len(images)) for name, images in alike.items())
    texts = _texts(seen["texts"], names, wanted) if names else None
    figures = measure(x, y, wanted, reference.labels if wanted else (), texts)
    setup = {
        "generator": generator, "inputs": given, "by": by, "seed": seed, "pictures": n, "size": size,
        "reference": {"pictures": len(reference.images), "labels": len(set(reference.labels))},
        "encoder": _encoder(seen["generated_vectors"]), "neighbours": manifold.NEIGHBOURS,
        "weights": pictures[0].recipe.spec.model.sha256 if pictures[0].recipe else {},
    }  # fmt: skip
    notices = (f"{reference.left_out} images of the folder were skipped: the limit is {data.MOST}",)
    return Evaluation(generator, pictures, wanted, reference, size, figures, copying.nearest(x, y), setup,
                      notices=notices if reference.left_out else ())  # fmt: skip


def embedder_of(host: Studio, name: str | None = None) -> Embedder:
    """The embedder of this name, or the first that a plugin offers. Raises UnknownName; UsageError if there is none."""
    known = host.plugins.embedders
    if name is not None and name not in known:
        raise UnknownName("embedder", name, known)
    if not known:
        raise UsageError("no plugin offers an image embedder", hint="`studio plugins` lists the loaded plugins")
    return known[name] if name is not None else next(iter(known.values()))


def prompts(labels: Sequence[str], n: int) -> list[str]:
    """n labels in a fixed shuffled order, each used equally often (plus or minus one)."""
    names = sorted(set(labels))
    random.Random(0).shuffle(names)
    return [names[place % len(names)] for place in range(n)]


def settings(
    host: Studio, generator: str, inputs: dict[str, Any], by: str | None, wanted: Sequence[str]
) -> dict[str, Any]:
    """The other inputs, validated and converted. Raises InputError, UnknownName."""
    if by is not None and by in inputs:
        raise InputError(by, f"`{by}` gets the labels, but is also given as `{inputs[by]}`", hint=f"omit `{by}`")
    kind = host.generator(generator).Inputs
    inputs = kind.main_names(inputs)
    checked = kind.parse({**inputs, **({by: wanted[0]} if by else {})})
    return {name: value for name, value in checked.as_recipe().items() if name in inputs}


def _by(host: Studio, generator: str, by: str | None, *, labelled: bool) -> str | None:
    """The input that gets a label, or None if there are no labels."""
    names = list(host.generator(generator).Inputs.model_fields)
    if by is not None and by not in names:
        raise UnknownName("input", by, names)
    if by is not None and not labelled:
        raise UsageError(
            f"`{by}` needs labels, but the folder has none", hint="put the images into one subfolder per label"
        )
    return by or (next((each for each in ASKING if each in names), None) if labelled else None)


def _making(generator: str, given: Mapping[str, Any], by: str | None, n: int, seed: int) -> Workflow:
    flow = Workflow("pictures")
    if by is None:
        made = flow.add(generator, name="pictures", repeat=n, seed=seed, **given)
    else:
        labels = flow.input("labels", "text", list=True)
        asked = {**given, by: flow.item}
        made = flow.add(generator, name="pictures", map=labels, seed=seed, **asked)
    flow.output("pictures", made)
    return flow


def _looking(embedder: Embedder, labelled: bool) -> Workflow:
    flow = Workflow("vectors")
    for name in ("generated", "reference"):
        images = flow.input(name, "image", list=True)
        flow.output(f"{name}_vectors", flow.add(embedder.pictures, name=f"{name}_vectors", images=images))
    if labelled and embedder.texts:
        labels = flow.input("labels", "text", list=True)
        flow.output("texts", flow.add(embedder.texts, name="texts", map=labels, text=flow.item))
    return flow


def _run(
    host: Studio, flow: Workflow, display: Display | None, options: dict[str, Any], values: dict[str, Any]
) -> FlowResult:
    """Run a workflow with these inputs. Raises the first failure of a node."""
    graph = host.workflow(flow)
    with nullcontext() if display is None else display(graph) as shown:
        watch = {} if shown is None else {"watch": shown.show}
        result = host.run(graph, values, **options, **watch)
    for report in result.failed:
        assert report.error is not None
        raise report.error
    return result


def _rows(media: Any, count: int) -> Vectors:
    assert isinstance(media, Embedding)
    return media.vector.reshape(count, -1)


def _texts(media: Sequence[Any], names: Sequence[str], wanted: Sequence[str]) -> Vectors:
    rows = {name: each.vector for name, each in zip(names, media, strict=True)}
    return np.stack([rows[name] for name in wanted])


def _encoder(media: Any) -> dict[str, Any]:
    recipe = media.recipe
    return {"generator": recipe.spec.generator, "weights": recipe.spec.model.sha256} if recipe else {}
