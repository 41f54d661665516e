"""Compiling graphs without a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import studio
from studio.server.catalogue import Catalogue
from studio.server.comfy.compile import Compiled, compile_graph
from studio.server.comfy.describe import SAMPLED, names
from studio.server.comfy.graph import parse
from studio.server.comfy.nodes import ADDITIONS
from studio.server.comfy.scene import Scene

Compile = Callable[[Any], Compiled]


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[studio.Studio]:
    with studio.Studio(home=tmp_path_factory.mktemp("home"), device="cpu") as made:
        yield made


@pytest.fixture(scope="session")
def compiled(host: studio.Studio) -> Compile:
    catalogue = Catalogue(host)
    lists = {**names(catalogue), ADDITIONS: {each: each for each in ("style", "words", "edges")}}

    def find(name: str) -> Any:
        return catalogue.choose(SAMPLED, name)

    def run(graph: Any) -> Compiled:
        return compile_graph(parse(graph), Scene(lists, find, host.store, lambda name: name == "words", 4))

    return run
