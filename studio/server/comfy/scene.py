"""What the nodes of one graph are compiled with: the names of models, uploaded pictures, and what was compiled so far.

Try it: ``pytest tests/studio/server/comfy/test_compile.py``
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from studio.media import Image
from studio.server.catalogue import Choice
from studio.server.comfy.graph import NodeProblem
from studio.server.comfy.values import Pixels, Render, Saved
from studio.store import Store

MAX_PIXELS = 200_000_000
"""Of all pictures that one graph loads and scales."""
_FILE = re.compile(r"(?:[A-Za-z0-9._-]{1,64}/)?([0-9a-f]{64})\.png(?: ?\[(?:input|output|temp)\])?")


Lists = Mapping[str, Mapping[str, str]]
"""Lists of names that clients see, each with Studio's name."""


class NodeFault(Exception):
    """A node cannot be compiled."""

    def __init__(self, problem: NodeProblem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def wrong(message: str, details: str = "", input: str | None = None) -> NodeFault:
    """The exception for a node that Studio cannot run as ComfyUI would."""
    return NodeFault(NodeProblem("custom_validation_failed", message, details, input))


def file_name(artifact: str) -> str:
    """The name under which clients get the picture with this id; it has nothing of theirs."""
    return f"{artifact}.png"


def artifact_in(name: str) -> str | None:
    """The id in the name of a file, or None: names that were not given by this server name nothing."""
    found = _FILE.fullmatch(name)
    return found[1] if found else None


def stored_picture(store: Store, name: str) -> Path | None:
    """The stored file with this name, or None."""
    artifact = artifact_in(name)
    path = store.path(artifact) if artifact else None
    return path if path is not None and path.suffix == Image.suffix else None


def known(picture: Pixels) -> Image:
    """The picture itself. Raises NodeFault if it is one that is still to be generated."""
    if picture.image is None:
        raise wrong("This input takes loaded pictures only", "the picture is one that the graph generates", "image")
    return picture.image


@dataclass
class Scene:
    """The surroundings of a node while a graph is compiled.

    Attributes:
        lists: the names of models and of additions, and what they stand for.
        find: the generator for the name of a model.
        store: has the uploaded pictures.
        changes_text: whether a LoRA changes text encoders, too.
        most: pictures that one request may ask for.
        node: the id of the current node.
        renders: in the order in which they can run.
        saved: what output nodes save.
    """

    lists: Lists
    find: Callable[[str], Choice]
    store: Store
    changes_text: Callable[[str], bool]
    most: int
    node: str = ""
    renders: list[Render] = field(default_factory=list)
    saved: list[Saved] = field(default_factory=list)
    _loaded: dict[str, Image] = field(default_factory=dict)
    _pixels: int = 0

    def choice(self, name: str) -> Choice:
        """The generator for the name of a model. Raises UnknownName."""
        return self.find(name)

    def load(self, name: str) -> Image:
        """An uploaded or generated picture. Raises NodeFault."""
        if name not in self._loaded:
            path = stored_picture(self.store, name)
            if path is None:
                details = f"`{name[:80]}`; use the `name` in the answer to /upload/image"
                raise NodeFault(NodeProblem("custom_validation_failed", "Invalid image file", details, "image"))
            found = self.store.open(path.stem)
            assert isinstance(found, Image)
            self.count(found.size)
            self._loaded[name] = found.attach(None, None)
        return self._loaded[name]

    def count(self, size: tuple[int, int]) -> None:
        """Count the pixels of one more picture. Raises NodeFault if there are too many."""
        self._pixels += size[0] * size[1]
        if self._pixels > MAX_PIXELS:
            raise wrong("The pictures of the graph are too large", f"the limit is {MAX_PIXELS:,} pixels in total")
