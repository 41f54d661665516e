"""Studio: the object that Python users, the command line and the server share.

It joins plugins, store and one engine, and knows nothing of terminals or HTTP. Everything is made when first used, so
that constructing it costs nothing. Use it as a context manager, or call `close`; at exit it closes by itself.

Try it::

    with studio.Studio() as s:
        picture = s.image("a red apple", seed=7)
        picture.save("apple.png")
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from studio.engine import Engine, Event, Request, Ticket
from studio.errors import InputError, StudioError, UnknownName
from studio.generator import Generator, Trainer
from studio.media import Image, Media
from studio.plugins import Plugins
from studio.recipe import Recipe
from studio.replay import ReplayReport, facts_changed, read_recipe, report
from studio.store import Artifact, Store

if TYPE_CHECKING:
    from studio.doctor import DoctorReport

MAX_SEED = (1 << 63) - 1
MAX_AT_ONCE = 1000


class Studio:
    """Generators, engine and store in one.

    `home` is the data folder (default: ``$STUDIO_HOME``, or the user's data folder), `device` is ``cpu``, ``cuda`` or
    ``cuda:N`` (default: CUDA where torch can use it), `dtype` overrides what generators choose, `plugins` are files or
    folders to load besides the installed plugins. Raises UsageError for a plugin path that does not exist.
    """

    def __init__(
        self,
        *,
        home: Path | str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        plugins: Sequence[Path | str] = (),
    ) -> None: ...

    @property
    def plugins(self) -> Plugins: ...

    @property
    def store(self) -> Store: ...

    @property
    def generators(self) -> Mapping[str, Generator]: ...

    @property
    def trainers(self) -> Mapping[str, Trainer]: ...

    def generator(self, name: str) -> Generator:
        """Return a generator by name. Raises UnknownName, which names the nearest."""

    def submit(self, name: str, /, *, seed: int | None = None, preview_every: int = 0, **inputs: Any) -> Ticket:
        """Accept a request and return its ticket at once. Raises UnknownName or InputError before anything runs."""

    def stream(self, name: str, /, *, seed: int | None = None, preview_every: int = 0, **inputs: Any) -> Iterator[Event]:
        """Run a request and yield its events; leaving the iterator early cancels it."""

    def generate(self, name: str, /, *, seed: int | None = None, **inputs: Any) -> Media:
        """Run a request, store what it makes and return it with `recipe` and `path`."""

    def image(self, prompt: str, *, seed: int | None = None, **inputs: Any) -> Image:
        """Make a picture with the generator `image`."""

    def images(self, prompt: str, n: int, *, seed: int | None = None, **inputs: Any) -> list[Image]:
        """Make n pictures together; their seeds are seed, seed + 1, …"""

    def show(self, what: Path | str) -> Artifact:
        """Return path, recipe and hash of a media file or of an artifact named by its id (at least 6 characters)."""

    def replay(self, what: Path | str) -> ReplayReport:
        """Make a file's or an artifact's media again from its recipe and compare."""

    def doctor(self) -> DoctorReport:
        """Look at versions, devices, memory, threads, attention backends, the data folder and plugins."""

    def close(self) -> None:
        """Cancel what runs and stop the engine's thread."""
