"""The result cache: the output of a node is cached by the hash of everything that determines it, across processes.

One SQLite file beside the store (WAL, so that a crash costs at most the last entries). An entry names media by hash;
the media themselves are in the store. Over the budget the least recently used entries are evicted. Their media are
removed only if they are intermediate results of a workflow that nothing else has stored since: the store gives a file
that is stored again a new time, and a file with a time other than the cached one is never removed. Recipes stay, so
that removed media can be generated again.

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

from studio.cache import SqliteCache
from studio.errors import StudioError
from studio.recipe import MediaRef
from studio.store import Store

BUDGET = 4 << 30  # bytes of intermediate media
_SCHEMA = """
create table if not exists made (
  key text primary key, sha256 text not null, media_type text not null, bytes integer not null,
  asked integer not null default 0, stamp integer not null default 0, used real not null
) without rowid;
create index if not exists made_sha256 on made (sha256);
create index if not exists made_used on made (used);
"""


def key_of(identity: Any, inputs: Any, seed: int) -> str:
    """The hash of everything that determines a result."""
    text = json.dumps([identity, inputs, seed], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class ResultCache:
    """Cached results. A context manager; safe to use from several threads and processes.

    `budget` limits the bytes of intermediate media. `notices` collects notices for the user. Raises StoreError if the
    file cannot be used.
    """

    def __init__(self, store: Store, budget: int = BUDGET) -> None:
        self.notices: list[str] = []
        self._store, self._budget = store, budget
        self._intermediate: dict[str, str] = {}  # key and sha256 of this run's intermediate results
        self._cache = SqliteCache(store.root / "memo.sqlite3", _SCHEMA)
        self._reported_renewed = False

    def find(self, key: str) -> MediaRef | None:
        """The result under this key, if the store still has it undamaged."""
        query = "select sha256, media_type, stamp from made where key = ?"
        row = self._cache.transact(lambda file: file.execute(query, (key,)).fetchone())
        self._report_renewed()
        if row is None:
            return None
        try:
            artifact = self._store.find(row[0])
        except StudioError as error:
            self.notices.append(f"the cached output is damaged, and is generated again: {error.message}")
            return None
        if artifact is None or artifact.media_type != row[1]:
            return None
        if row[2] and _stamp(artifact.path) == row[2]:
            self._intermediate[key] = row[0]
        return MediaRef(sha256=artifact.sha256, media_type=artifact.media_type)

    def add(self, key: str, made: MediaRef, *, intermediate: bool) -> None:
        """Add a result; `intermediate` if it is not an output of the workflow."""
        path = self._store.path(made.sha256)
        size = path.stat().st_size if path else 0
        row = (key, made.sha256, made.media_type, size, time.time())
        insert = (
            "insert into made (key, sha256, media_type, bytes, used) values (?, ?, ?, ?, ?) "
            "on conflict (key) do update set sha256 = excluded.sha256, media_type = excluded.media_type, "
            "bytes = excluded.bytes, stamp = 0, used = excluded.used"
        )
        self._cache.transact(lambda file: file.execute(insert, row))
        self._report_renewed()
        if intermediate:
            self._intermediate[key] = made.sha256

    def finish(self, used: Iterable[str], asked: Iterable[str]) -> None:
        """End a run: record which results it used and which are outputs, and evict down to the budget."""
        now, keys, wanted = time.time(), list(used), set(asked)
        stamps = [(_stamp(path), key, sha256, sha256) for key, sha256 in self._intermediate.items()
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
        self._intermediate.clear()

    def close(self) -> None:
        """Close the file."""
        self._cache.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _evict(self, file: sqlite3.Connection) -> None:
        """Evict entries, least recently used first, until the intermediate media fit the budget."""
        total = file.execute("select coalesce(sum(bytes), 0) from made where stamp > 0").fetchone()[0]
        oldest = file.execute("select key, sha256, bytes, stamp from made where stamp > 0 order by used, key")
        for key, sha256, size, stamp in oldest.fetchall():
            if total <= self._budget:
                return
            file.execute("delete from made where key = ?", (key,))
            if not file.execute("select 1 from made where sha256 = ?", (sha256,)).fetchone():
                self._store.discard(sha256, stamp)
            total -= size

    def _report_renewed(self) -> None:
        if self._cache.renewed and not self._reported_renewed:
            self._reported_renewed = True
            self.notices.append(f"`{self._cache.path}` was damaged and has been recreated: every node runs again")


def _stamp(path: Path) -> int:
    """A file's modification time in ns; 0 if it no longer exists."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
