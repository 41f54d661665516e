"""Finding pictures by words: what the pictures are is kept as vectors, so that only new ones are looked at.

The pictures are those of the store that were made (they have a recipe), or the files of a folder. They are opened a few
at a time, and nothing of them is kept but vectors: of the picture, and of the prompt (or label) that its recipe tells.
Both come from the generators `embed` and `embed-pictures`, by way of the engine, and lie in `search.sqlite3` in the
data folder, by model and by what names a picture: an artifact's hash, or a file's path, size and time of change. This
module knows nothing of terminals or of what a vector means.

Try it: ``studio search "red fruit"``
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote_from_bytes

from studio.cache import Cache
from studio.errors import StudioError, UsageError
from studio.media import Embedding, Image, Media
from studio.media.folders import files_in
from studio.store import Store
from studio_clip.batches import Follow, in_batches

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from studio.api import Studio
    from studio.recipe import Recipe

SAID = ("prompt", "of")  # inputs in which a recipe tells what is to be seen
_MOST_SAID = 2000  # characters; what `embed` takes
_ASKED = 500  # keys in one question to SQLite
_SCHEMA = """
drop table if exists vectors;
create table if not exists pictures (
  model text, key text, vector blob not null, said blob not null, sum integer not null, primary key (model, key)
) without rowid;
"""

Watch = Callable[[int, int], None]


@dataclass(frozen=True)
class Hit:
    """A picture that was found: how well it goes with the text, its file, and its id if it is an artifact.

    The score is the cosine of the picture with the text; where a recipe tells what was asked for, it is the mean of
    that and the cosine of those words with the text.
    """

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
        renewed: whether the file of vectors was damaged and was begun anew.
    """

    hits: list[Hit]
    looked_at: int
    known: int
    broken: dict[Path, StudioError]
    renewed: bool = False


@dataclass(frozen=True)
class Seen:
    """What is kept of a picture: its unit vector, and that of what its recipe says, or None. Both float32 (D,)."""

    vector: NDArray[np.float32]
    said: NDArray[np.float32] | None = None

    def score(self, wanted: NDArray[np.float32]) -> float:
        """How well it goes with a text's unit vector."""
        own = float(self.vector @ wanted)
        return own if self.said is None else (own + float(self.said @ wanted)) / 2

    def row(self) -> tuple[bytes, bytes, int]:
        """The two vectors as bytes, and a checksum of both."""
        vector, said = (b"" if each is None else each.astype("<f4").tobytes() for each in (self.vector, self.said))
        return vector, said, zlib.crc32(vector + said)

    @classmethod
    def of_row(cls, row: tuple[Any, ...], size: int) -> Self | None:
        """Read a row of vectors of `size` numbers; None if it is damaged."""
        import numpy as np

        vector, said, checksum = row
        whole = isinstance(vector, bytes) and isinstance(said, bytes) and zlib.crc32(vector + said) == checksum
        if not whole or len(vector) != 4 * size or len(said) not in (0, 4 * size):
            return None
        return cls(np.frombuffer(vector, "<f4"), np.frombuffer(said, "<f4") if said else None)


class Vectors:
    """The vectors of one model, of `size` numbers each, by key. A damaged one counts as none."""

    def __init__(self, cache: Cache, model: str, size: int) -> None:
        self._cache, self._model, self._size = cache, model, size

    def get(self, keys: Sequence[str]) -> Iterator[tuple[str, Seen]]:
        """Yield the vectors of those keys that have some."""
        for first in range(0, len(keys), _ASKED):
            some = keys[first : first + _ASKED]
            marks = ",".join("?" * len(some))
            query = f"select key, vector, said, sum from pictures where model = ? and key in ({marks})"
            rows = self._cache.transact(partial(_fetch, query, (self._model, *some)))
            for key, *row in rows:
                if (seen := Seen.of_row(tuple(row), self._size)) is not None:
                    yield key, seen

    def add(self, made: Mapping[str, Seen]) -> None:
        """Keep vectors."""
        rows = [(self._model, key, *seen.row()) for key, seen in made.items()]
        insert = "insert or replace into pictures values (?, ?, ?, ?, ?)"
        self._cache.transact(lambda file: file.executemany(insert, rows))


def _fetch(query: str, values: tuple[str, ...], file: sqlite3.Connection) -> list[tuple[Any, ...]]:
    return file.execute(query, values).fetchall()


def search(
    host: Studio,
    text: str,
    folder: Path | str | None = None,
    *,
    n: int = 5,
    model: str = "",
    follow: Follow = lambda _: None,
    watch: Watch = lambda *_: None,
    **request: Any,
) -> Found:
    """The n pictures of the store, or of a folder, that go best with a text in English or Chinese.

    `model` is what the generator `embed` takes; each has vectors of its own. `follow` is called with every request that
    is made, and `watch` with how many pictures were looked at, of how many that are new. `request` is what
    `Studio.submit` takes besides: `priority`, `client`, `time_limit_s`. Raises UsageError where there
    is nothing to search, InputError, StoreError, and what `Studio.submit` raises. What was looked at before an
    interruption stays known.
    """
    broken: dict[Path, StudioError] = {}
    hits = _of_store(host.store) if folder is None else _of_folder(Path(folder), broken)
    words = _Words(host, model, follow, request)
    asked, identity = words.embed(text)
    with Cache(host.home / "search.sqlite3", _SCHEMA) as cache:
        kept = Vectors(cache, identity, len(asked))
        scores = {key: seen.score(asked) for key, seen in kept.get(list(hits))}
        known = len(scores)
        new = {key: hit for key, hit in hits.items() if key not in scores}
        for made in _look(host, new, words, broken):
            kept.add(made)
            scores |= {key: seen.score(asked) for key, seen in made.items()}
            watch(len(scores) - known, len(new))
        renewed = cache.renewed
    best = sorted(scores, key=lambda key: -scores[key])[:n]
    return Found([replace(hits[key], score=scores[key]) for key in best], len(scores) - known, known, broken, renewed)


class _Words:
    """Texts as unit vectors by one model; each is made once."""

    def __init__(self, host: Studio, model: str, follow: Follow, request: Mapping[str, Any]) -> None:
        self.model, self.follow, self.request = model, follow, request
        self._host = host
        self._said: dict[str, NDArray[np.float32]] = {}

    def embed(self, text: str) -> tuple[NDArray[np.float32], str]:
        """A text's vector, and a name of the model: of the weights' hashes and the generator's version."""
        ticket = self._host.submit("embed", text=text, model=self.model, stored=False, **self.request)
        self.follow(ticket)
        made = ticket.result()
        assert isinstance(made, Embedding)
        recipe = made.recipe
        assert recipe is not None
        told = f"{recipe.spec.generator} {recipe.generator_version} {sorted(recipe.spec.model.sha256.items())}"
        return made.vector, hashlib.sha256(told.encode()).hexdigest()

    def said(self, recipe: Recipe | None) -> NDArray[np.float32] | None:
        """The vector of what a recipe, which may be anybody's, says is to be seen; None if it says nothing."""
        values = () if recipe is None else (recipe.spec.inputs.get(name) for name in SAID)
        text = next((each.strip()[:_MOST_SAID] for each in values if isinstance(each, str) and each.strip()), None)
        if text is None:
            return None
        if text not in self._said:
            self._said[text], _ = self.embed(text)
        return self._said[text]


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


def _of_folder(folder: Path, broken: dict[Path, StudioError]) -> dict[str, Hit]:
    """The pictures of a folder, by path, size and time of change."""
    if not folder.is_dir():
        raise UsageError(f"`{folder}` is not a folder", hint="name a folder of pictures, or none to search the store")
    hits = {}
    for path in files_in(folder, broken=broken):
        with suppress(FileNotFoundError):  # it has gone meanwhile
            stat = path.stat()
            name = quote_from_bytes(os.fsencode(path.absolute()))  # a name need not be text
            hits[f"{name} {stat.st_size} {stat.st_mtime_ns}"] = Hit(0.0, path)
    return hits


def _look(
    host: Studio, hits: Mapping[str, Hit], words: _Words, broken: dict[Path, StudioError]
) -> Iterator[dict[str, Seen]]:
    """Make the vectors of what is not known, some at a time; what cannot be read goes into `broken`."""
    keys = {hit.path: key for key, hit in hits.items()}

    def opened(path: Path) -> Media:
        sha256 = hits[keys[path]].sha256
        return Image.open(path) if sha256 is None else host.store.open(sha256)

    batches = in_batches(
        host, "embed-pictures", keys, broken, opened=opened, follow=words.follow, model=words.model, **words.request
    )
    for recipes, made in batches:
        assert isinstance(made, Embedding)
        vectors = made.vector.reshape(len(recipes), -1)
        yield {
            keys[path]: Seen(vector, words.said(recipe))
            for (path, recipe), vector in zip(recipes.items(), vectors, strict=True)
        }
