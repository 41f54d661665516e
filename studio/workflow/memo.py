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
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Self

from studio.errors import StoreError
from studio.files import make_folder
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

    `budget` bounds the bytes of media that workflows made on their way. Raises StoreError if the file cannot be used.
    """

    def __init__(self, store: Store, budget: int = BUDGET) -> None:
        self._store, self._budget = store, budget
        self._path = store.root / "memo.sqlite3"
        self._lock = threading.Lock()
        self._mine: dict[str, str] = {}  # key and sha256 of what is on the way in this run, and only there
        make_folder(store.root)
        try:
            self._file = sqlite3.connect(self._path, timeout=30, isolation_level=None, check_same_thread=False)
            self._file.execute("pragma journal_mode=wal")
            self._file.execute("pragma synchronous=normal")
            self._file.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise self._broken(error) from None

    def find(self, key: str) -> MediaRef | None:
        """What was made under this key, if the store still has it whole."""
        with self._lock:
            try:
                query = "select sha256, media_type, stamp from made where key = ?"
                row = self._file.execute(query, (key,)).fetchone()
            except sqlite3.Error as error:
                raise self._broken(error) from None
        path = self._store.path(row[0]) if row else None
        if path is None:
            return None
        if row[2] and path.stat().st_mtime_ns == row[2]:
            self._mine[key] = row[0]
        return MediaRef(sha256=row[0], media_type=row[1])

    def keep(self, key: str, made: MediaRef, *, on_the_way: bool) -> None:
        """Remember what was made; `on_the_way` if nobody asked for it by itself."""
        path = self._store.path(made.sha256)
        size = path.stat().st_size if path else 0
        row = (key, made.sha256, made.media_type, size, time.time())
        with self._lock:
            try:
                self._file.execute(
                    "insert into made (key, sha256, media_type, bytes, used) values (?, ?, ?, ?, ?) "
                    "on conflict (key) do update set sha256 = excluded.sha256, media_type = excluded.media_type, "
                    "bytes = excluded.bytes, stamp = 0, used = excluded.used",
                    row,
                )
            except sqlite3.Error as error:
                raise self._broken(error) from None
            if on_the_way:
                self._mine[key] = made.sha256

    def finish(self, used: Iterable[str], asked: Iterable[str]) -> None:
        """End a run: note what it used and what of it was asked for, and keep to the budget."""
        now, wanted = time.time(), set(asked)
        with self._lock:
            try:
                self._file.execute("begin immediate")
                self._file.executemany("update made set used = ? where key = ?", [(now, key) for key in used])
                asked = "update made set asked = 1, stamp = 0 where sha256 = ?"
                self._file.executemany(asked, [(each,) for each in wanted])
                stamps = [(path.stat().st_mtime_ns, key, sha256, sha256) for key, sha256 in self._mine.items()
                          if (path := self._store.path(sha256))]  # fmt: skip
                self._file.executemany(
                    "update made set stamp = ? where key = ? and sha256 = ? "
                    "and not exists (select 1 from made where sha256 = ? and asked)", stamps,
                )  # fmt: skip
                self._mine.clear()
                self._evict()
                self._file.execute("commit")
            except sqlite3.Error as error:
                with suppress(sqlite3.Error):
                    self._file.execute("rollback")
                raise self._broken(error) from None

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _evict(self) -> None:
        """Forget entries, the least recently used first, until what is on the way keeps to the budget."""
        total = self._file.execute("select coalesce(sum(bytes), 0) from made where stamp > 0").fetchone()[0]
        oldest = self._file.execute("select key, sha256, bytes, stamp from made where stamp > 0 order by used, key")
        for key, sha256, size, stamp in oldest.fetchall():
            if total <= self._budget:
                return
            self._file.execute("delete from made where key = ?", (key,))
            if not self._file.execute("select 1 from made where sha256 = ?", (sha256,)).fetchone():
                self._store.discard(sha256, stamp)
            total -= size

    def _broken(self, error: sqlite3.Error) -> StoreError:
        return StoreError(f"cannot use `{self._path}`: {error}", hint="remove the file: nodes then run once more")
