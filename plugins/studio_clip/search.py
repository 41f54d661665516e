"""Search pictures by text: embeddings of the pictures are cached, so that only new pictures are embedded.

The pictures are the generated ones in the store (they have a recipe), or the files of a folder. They are opened a few
at
a time, and only embeddings are cached: of the picture, and of the prompt (or label) in its recipe. Both come from the
generators `embed` and `embed-pictures`, and are in `search.sqlite3` in the data folder, by model and by picture: an
artifact's hash, or a file's path, size and modification time.

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

from studio.cache import SqliteCache
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

PROMPT_INPUTS = ("prompt", "of")  # inputs of a recipe that describe the picture
_MAX_PROMPT = 2000  # characters; the limit of `embed`
_KEYS_PER_QUERY = 500  # keys per SQLite query
_SCHEMA = """
drop table if exists vectors;
create table if not exists pictures (
  model text, key text, vector blob not null, said blob not null, sum integer not null, primary key (model, key)
) without rowid;
"""

Watch = Callable[[int, int], None]


@dataclass(frozen=True)
class Hit:
    """A picture with its score, its file, and its id if it is an artifact.

    The score is the cosine similarity of the picture and the text; with a prompt in the recipe, the mean of that and
    the cosine similarity of the prompt and the text.
    """

    score: float
    path: Path
    sha256: str | None = None


@dataclass(frozen=True)
class SearchResult:
    """The result of a search.

    Attributes:
        hits: the best match first.
        looked_at: number of pictures embedded now.
        known: number of pictures whose embeddings were cached.
        broken: pictures that could not be read, with the reason; each search tries them again.
        renewed: whether the cache was damaged and was created again.
    """

    hits: list[Hit]
    looked_at: int
    known: int
    broken: dict[Path, StudioError]
    renewed: bool = False


@dataclass(frozen=True)
class PictureVectors:
    """The cached embeddings of a picture and of the prompt in its recipe, or None; both float32 (D,)."""

    vector: NDArray[np.float32]
    prompt: NDArray[np.float32] | None = None

    def score(self, text: NDArray[np.float32]) -> float:
        """The score for a text's embedding."""
        cosine = float(self.vector @ text)
        return cosine if self.prompt is None else (cosine + float(self.prompt @ text)) / 2

    def row(self) -> tuple[bytes, bytes, int]:
        """The two vectors as bytes, and a checksum of both."""
        vector, prompt = (b"" if each is None else each.astype("<f4").tobytes() for each in (self.vector, self.prompt))
        return vector, prompt, zlib.crc32(vector + prompt)

    @classmethod
    def of_row(cls, row: tuple[Any, ...], size: int) -> Self | None:
        """Read a row of vectors of `size` numbers; None if it is damaged."""
        import numpy as np

        vector, prompt, checksum = row
        intact = isinstance(vector, bytes) and isinstance(prompt, bytes) and zlib.crc32(vector + prompt) == checksum
        if not intact or len(vector) != 4 * size or len(prompt) not in (0, 4 * size):
            return None
        return cls(np.frombuffer(vector, "<f4"), np.frombuffer(prompt, "<f4") if prompt else None)


class VectorCache:
    """Embeddings of one model, with `size` numbers each, by key. Damaged entries count as missing."""

    def __init__(self, cache: SqliteCache, model: str, size: int) -> None:
        self._cache, self._model, self._size = cache, model, size

    def get(self, keys: Sequence[str]) -> Iterator[tuple[str, PictureVectors]]:
        """Yield the embeddings of those keys that are cached."""
        for first in range(0, len(keys), _KEYS_PER_QUERY):
            some = keys[first : first + _KEYS_PER_QUERY]
            marks = ",".join("?" * len(some))
            query = f"select key, vector, said, sum from pictures where model = ? and key in ({marks})"
            rows = self._cache.transact(partial(_fetch, query, (self._model, *some)))
            for key, *row in rows:
                if (vectors := PictureVectors.of_row(tuple(row), self._size)) is not None:
                    yield key, vectors

    def add(self, made: Mapping[str, PictureVectors]) -> None:
        """Store embeddings."""
        rows = [(self._model, key, *vectors.row()) for key, vectors in made.items()]
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
) -> SearchResult:
    """The n pictures of the store, or of a folder, that match a text (English or Chinese) best.

    `model` is that of the generator `embed`; embeddings are cached per model. `follow` is called with every ticket, and
    `watch` with the number of pictures embedded, and the number of new ones. `request` are options of `Studio.submit`:
    `priority`, `client`, `time_limit_s`. Raises UsageError if there is nothing to search, InputError, StoreError, and
    as `Studio.submit`. After an interruption the embeddings so far stay cached.
    """
    broken: dict[Path, StudioError] = {}
    hits = _of_store(host.store) if folder is None else _of_folder(Path(folder), broken)
    words = _TextEmbedder(host, model, follow, request)
    asked, identity = words.embed(text)
    with SqliteCache(host.home / "search.sqlite3", _SCHEMA) as cache:
        cached = VectorCache(cache, identity, len(asked))
        scores = {key: vectors.score(asked) for key, vectors in cached.get(list(hits))}
        known = len(scores)
        new = {key: hit for key, hit in hits.items() if key not in scores}
        for made in _embed_new(host, new, words, broken):
            cached.add(made)
            scores |= {key: vectors.score(asked) for key, vectors in made.items()}
            watch(len(scores) - known, len(new))
        renewed = cache.renewed
    best = sorted(scores, key=lambda key: -scores[key])[:n]
    return SearchResult(
        [replace(hits[key], score=scores[key]) for key in best], len(scores) - known, known, broken, renewed
    )


class _TextEmbedder:
    """Text embeddings of one model; each prompt is embedded once."""

    def __init__(self, host: Studio, model: str, follow: Follow, request: Mapping[str, Any]) -> None:
        self.model, self.follow, self.request = model, follow, request
        self._host = host
        self._prompts: dict[str, NDArray[np.float32]] = {}

    def embed(self, text: str) -> tuple[NDArray[np.float32], str]:
        """A text's embedding, and an id of the model: a hash of the weights' hashes and the generator's version."""
        ticket = self._host.submit("embed", text=text, model=self.model, stored=False, **self.request)
        self.follow(ticket)
        made = ticket.result()
        assert isinstance(made, Embedding)
        recipe = made.recipe
        assert recipe is not None
        identity = f"{recipe.spec.generator} {recipe.generator_version} {sorted(recipe.spec.model.sha256.items())}"
        return made.vector, hashlib.sha256(identity.encode()).hexdigest()

    def prompt(self, recipe: Recipe | None) -> NDArray[np.float32] | None:
        """The embedding of the prompt in a recipe, which is untrusted; None if it has none."""
        values = () if recipe is None else (recipe.spec.inputs.get(name) for name in PROMPT_INPUTS)
        text = next((each.strip()[:_MAX_PROMPT] for each in values if isinstance(each, str) and each.strip()), None)
        if text is None:
            return None
        if text not in self._prompts:
            self._prompts[text], _ = self.embed(text)
        return self._prompts[text]


def _of_store(store: Store) -> dict[str, Hit]:
    """The generated pictures of the store, by hash."""
    paths = ((each, store.path(each)) for each in store)
    hits = {
        sha256: Hit(0.0, path, sha256)
        for sha256, path in paths
        if path is not None and path.suffix == Image.suffix and path.with_suffix(".json").is_file()
    }
    if not hits:
        raise UsageError("the store has no pictures yet", hint="generate some with `studio image`, or give a folder")
    return hits


def _of_folder(folder: Path, broken: dict[Path, StudioError]) -> dict[str, Hit]:
    """The pictures of a folder, by path, size and modification time."""
    if not folder.is_dir():
        raise UsageError(f"`{folder}` is not a folder", hint="give a folder of pictures, or none to search the store")
    hits = {}
    for path in files_in(folder, broken=broken):
        with suppress(FileNotFoundError):  # deleted meanwhile
            stat = path.stat()
            name = quote_from_bytes(os.fsencode(path.absolute()))  # a name need not be valid UTF-8
            hits[f"{name} {stat.st_size} {stat.st_mtime_ns}"] = Hit(0.0, path)
    return hits


def _embed_new(
    host: Studio, hits: Mapping[str, Hit], words: _TextEmbedder, broken: dict[Path, StudioError]
) -> Iterator[dict[str, PictureVectors]]:
    """Embed the pictures that are not cached, in batches; those that cannot be read go into `broken`."""
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
            keys[path]: PictureVectors(vector, words.prompt(recipe))
            for (path, recipe), vector in zip(recipes.items(), vectors, strict=True)
        }
