"""Finding pictures by words: what the pictures are, as vectors, is kept, so that only new ones are looked at.

The pictures are those of the store that were made (they have a recipe), or the files of a folder. Their vectors come
from the generators `embed` and `embed-pictures`, by way of the engine. They are kept in `search.sqlite3` in the data
folder, by model and by what names a picture: an artifact's hash, or a file's path, size and time of change. This module
knows nothing of terminals or of what a vector means.

Try it: ``studio search "red fruit"``
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.errors import MediaError, StoreError, StudioError, UsageError
from studio.files import make_folder
from studio.media import Embedding, Image

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from studio.api import Studio
    from studio.engine import Ticket
    from studio.store import Store

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
TOGETHER = 256  # pictures in a request, after which their vectors are kept
_ASKED = 500  # keys in one question to SQLite


def files_in(folder: Path, suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
    """The files directly in a folder that end so, by name. Raises UsageError if there are none."""
    files = sorted(each for each in folder.iterdir() if each.suffix.lower() in suffixes and each.is_file())
    if not files:
        raise UsageError(f"the folder `{folder}` holds no files of a known kind", hint=f"known: {', '.join(suffixes)}")
    return files


@dataclass(frozen=True)
class Hit:
    """A picture that was found: the cosine of its vector with the text's, its file, and its id if it is an artifact."""

    score: float
    path: Path
    sha256: str | None = None


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
        hits: the nearest first.
        looked_at: pictures whose vectors were made now.
        known: pictures whose vectors were there.
        broken: pictures that could not be read, with the reason; they are looked at anew each time.
    """

    hits: list[Hit]
    looked_at: int
    known: int
    broken: dict[Path, StudioError]


class Vectors:
    """The vectors of one model, by key. A context manager's content; several processes may use the file."""

    def __init__(self, file: sqlite3.Connection, model: str) -> None:
        self._file, self._model = file, model
        file.execute(
            "create table if not exists vectors (model text, key text, vector blob not null, primary key (model, key))"
            " without rowid"
        )

    @classmethod
    @contextmanager
    def open(cls, home: Path, model: str) -> Iterator[Vectors]:
        """Open the file in a data folder. Raises StoreError if it cannot be used."""
        path = make_folder(home) / "search.sqlite3"
        try:
            with closing(sqlite3.connect(path, timeout=30)) as file:
                file.execute("pragma journal_mode=wal")
                yield cls(file, model)
        except sqlite3.Error as error:
            hint = "remove the file: the next search makes it again"
            raise StoreError(f"cannot use `{path}`: {error}", hint=hint) from None

    def get(self, keys: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """The vectors of those keys that have one."""
        import numpy as np

        found = {}
        for first in range(0, len(keys), _ASKED):
            some = keys[first : first + _ASKED]
            query = f"select key, vector from vectors where model = ? and key in ({','.join('?' * len(some))})"
            for key, data in self._file.execute(query, (self._model, *some)):
                found[key] = np.frombuffer(data, "<f4")
        return found

    def add(self, made: Mapping[str, NDArray[np.float32]]) -> None:
        """Keep vectors."""
        rows = [(self._model, key, vector.astype("<f4").tobytes()) for key, vector in made.items()]
        with self._file:
            self._file.executemany("insert or replace into vectors values (?, ?, ?)", rows)


def search(
    host: Studio,
    text: str,
    folder: Path | str | None = None,
    *,
    n: int = 5,
    model: str = "",
    follow: Callable[[Ticket], None] = lambda _: None,
) -> Found:
    """The n pictures of the store, or of a folder, that go best with a text in English or Chinese.

    `model` is what the generator `embed` takes; each has vectors of its own. `follow` is called with every request that
    is made, to show its progress. Raises UsageError where there is nothing to search, InputError, StoreError, and what
    `Studio.submit` raises. What was looked at before an interruption stays known.
    """
    import numpy as np

    hits = _of_store(host.store) if folder is None else _of_folder(Path(folder))
    asked = host.submit("embed", text=text, model=model)
    follow(asked)
    wanted = asked.result()
    assert isinstance(wanted, Embedding)
    with Vectors.open(host.home, _identity(wanted)) as kept:
        vectors = kept.get(list(hits))
        known = len(vectors)
        broken: dict[Path, StudioError] = {}
        for made in _look(host, {key: hit for key, hit in hits.items() if key not in vectors}, model, follow, broken):
            kept.add(made)
            vectors |= made
    keys = list(vectors)
    scores = np.stack([vectors[key] for key in keys]) @ wanted.vector if keys else np.zeros(0)
    best = np.argsort(-scores, kind="stable")[:n]
    found = [Hit(float(scores[i]), hits[keys[i]].path, hits[keys[i]].sha256) for i in best]
    return Found(found, len(keys) - known, known, broken)


def _identity(made: Embedding) -> str:
    """Names the model that made a vector: the weights' hashes and the generator's version."""
    recipe = made.recipe
    assert recipe is not None
    told = f"{recipe.generator} {recipe.generator_version} {sorted(recipe.weights.items())}"
    return hashlib.sha256(told.encode()).hexdigest()


def _of_store(store: Store) -> dict[str, Hit]:
    """The pictures that were made, by their hash."""
    paths = ((each, store.path(each)) for each in store)
    hits = {
        sha256: Hit(0.0, path, sha256)
        for sha256, path in paths
        if path is not None and path.suffix == Image.suffix and path.with_suffix(".json").is_file()
    }
    if not hits:
        raise UsageError("the store has no pictures yet", hint="make some with `studio image`, or name a folder")
    return hits


def _of_folder(folder: Path) -> dict[str, Hit]:
    """The pictures of a folder, by path, size and time of change."""
    if not folder.is_dir():
        raise UsageError(f"`{folder}` is no folder", hint="name a folder of pictures, or none to search the store")
    stats = [(each, each.stat()) for each in files_in(folder)]
    return {f"{path.absolute()} {stat.st_size} {stat.st_mtime_ns}": Hit(0.0, path) for path, stat in stats}


def _look(
    host: Studio, hits: Mapping[str, Hit], model: str, follow: Callable[[Ticket], None], broken: dict[Path, StudioError]
) -> Iterator[dict[str, NDArray[Any]]]:
    """Make the vectors of what is not known, some at a time; what cannot be read goes into `broken`."""
    keys = list(hits)
    for first in range(0, len(keys), TOGETHER):
        pictures: dict[str, Image] = {}
        for key in keys[first : first + TOGETHER]:
            try:
                pictures[key] = Image.open(hits[key].path)
            except MediaError as error:
                broken[hits[key].path] = error
        if not pictures:
            continue
        ticket = host.submit("embed-pictures", images=list(pictures.values()), model=model)
        follow(ticket)
        made = ticket.result()
        assert isinstance(made, Embedding)
        yield dict(zip(pictures, made.vector.reshape(len(pictures), -1), strict=True))
