"""The memo: what a node made is remembered under the hash of everything that made it, also by the next process.

One SQLite file beside the store (WAL, so that a crash costs at most the last entries). An entry names media by hash;
the media themselves are the store's. Over the budget the entries that were used least recently are forgotten. Their
media are removed only if a workflow made them on its way and nobody else has asked for them since: the store gives a
file that is stored again a new time, and a file with another time than the memo knows is never touched. Recipes stay,
so that what was removed can be made again. This module knows nothing of graphs.

Try it: ``studio run FILE`` twice
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from studio.cache import Cache
from studio.errors import StudioError
from studio.recipe import MediaRef
from studio.store import Store

BUDGET = 4 << 30  # bytes of media on the way
_SCHEMA = """
create table if not exists made (
  key text primary key, sha256 text not null, media_type text not null, bytes integer not null,
  asked integer not null default 0, stamp integer not null default 0, used real not null
) without rowid;
create index if not exists made_sha256 on made (sha256);
create index if not exists made_used on made (used);
"""


def key_of(identity: Any, inputs: Any, seed: int) -> str:
    """The hash of everything that makes a result."""
    text = json.dumps([identity, inputs, seed], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Memo:
    """What was made before. A context manager; safe to use from several threads and processes.

    `budget` bounds the bytes of media that workflows made on their way. `notices` collects what a person should be
    told. Raises StoreError if the file cannot be used.
    """

    def __init__(self, store: Store, budget: int = BUDGET) -> None:
        self.notices: list[str] = []
        self._store, self._budget = store, budget
        self._mine: dict[str, str] = {}  # key and sha256 of what is on the way in this run, and only there
        self._cache = Cache(store.root / "memo.sqlite3", _SCHEMA)
        self._told_renewed = False

    def find(self, key: str) -> MediaRef | None:
        """What was made under this key, if the store still has it whole: damaged media count as none."""
        query = "select sha256, media_type, stamp from made where key = ?"
        row = self._cache.transact(lambda file: file.execute(query, (key,)).fetchone())
        self._tell_renewed()
        if row is None:
            return None
        try:
            artifact = self._store.find(row[0])
        except StudioError as error:
            self.notices.append(f"made again, as it was damaged: {error.message}")
            return None
        if artifact is None or artifact.media_type != row[1]:
            return None
        if row[2] and _stamp(artifact.path) == row[2]:
            self._mine[key] = row[0]
        return MediaRef(sha256=artifact.sha256, media_type=artifact.media_type)

    def keep(self, key: str, made: MediaRef, *, on_the_way: bool) -> None:
        """Remember what was made; `on_the_way` if nobody asked for it by itself."""
        path = self._store.path(made.sha256)
        size = path.stat().st_size if path else 0
        row = (key, made.sha256, made.media_type, size, time.time())
        insert = (
            "insert into made (key, sha256, media_type, bytes, used) values (?, ?, ?, ?, ?) "
            "on conflict (key) do update set sha256 = excluded.sha256, media_type = excluded.media_type, "
            "bytes = excluded.bytes, stamp = 0, used = excluded.used"
        )
        self._cache.transact(lambda file: file.execute(insert, row))
        self._tell_renewed()
        if on_the_way:
            self._mine[key] = made.sha256

    def finish(self, used: Iterable[str], asked: Iterable[str]) -> None:
        """End a run: note what it used and what of it was asked for, and keep to the budget."""
        now, keys, wanted = time.time(), list(used), set(asked)
        stamps = [(_stamp(path), key, sha256, sha256) for key, sha256 in self._mine.items()
                  if (path := self._store.path(sha256))]  # fmt: skip

        def note(file: sqlite3.Connection) -> None:
            file.executemany("update made set used = ? where key = ?", [(now, key) for key in keys])
            file.executemany("update made set asked = 1, stamp = 0 where sha256 = ?", [(each,) for each in wanted])
            file.executemany(
                "update made set stamp = ? where key = ? and sha256 = ? "
                "and not exists (select 1 from made where sha256 = ? and asked)", stamps,
            )  # fmt: skip
            self._evict(file)

        self._cache.transact(note)
        self._mine.clear()

    def close(self) -> None:
        """Close the file."""
        self._cache.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _evict(self, file: sqlite3.Connection) -> None:
        """Forget entries, the least recently used first, until what is on the way keeps to the budget."""
        total = file.execute("select coalesce(sum(bytes), 0) from made where stamp > 0").fetchone()[0]
        oldest = file.execute("select key, sha256, bytes, stamp from made where stamp > 0 order by used, key")
        for key, sha256, size, stamp in oldest.fetchall():
            if total <= self._budget:
                return
            file.execute("delete from made where key = ?", (key,))
            if not file.execute("select 1 from made where sha256 = ?", (sha256,)).fetchone():
                self._store.discard(sha256, stamp)
            total -= size

    def _tell_renewed(self) -> None:
        if self._cache.renewed and not self._told_renewed:
            self._told_renewed = True
            self.notices.append(f"`{self._cache.path}` was damaged and is begun anew: every node runs once more")


def _stamp(path: Path) -> int:
    """A file's time of change in ns; 0 for one that has just gone."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
