"""The jobs' database: SQLite in the data folder (WAL, every commit synced), or PostgreSQL by a URL.

Every row has a checksum, so that a damaged value is found when it is read and never used; a damaged SQLite file is
found when it is opened. Indexes are rebuilt; any other damage is refused with one sentence. A transaction sees and
changes the rows of the moment, also if several processes use the database.

Try it: ``pytest tests/studio/jobs/test_database.py``
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from studio.errors import Busy, StoreError, UsageError, clean
from studio.files import make_folder, store_error
from studio.jobs.tables import DAMAGED, RESTORE, TABLES, Transaction
from studio.locks import try_lock

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

T = TypeVar("T")
FILE = "jobs.sqlite"
LOCK = "jobs.lock"
SCHEMA = 1
_ADVISORY = 0x5354554A  # the number of the lock: STUJ
_BUSY_MS = 30_000  # how long a transaction waits for another process


class Database:
    """The tables. Safe to use from several threads and processes.

    `url` is an SQLAlchemy URL (None: `FILE` in `home`, created if necessary). Raises StoreError if the database is
    damaged, of a newer version, or cannot be used.
    """

    def __init__(self, home: Path, url: str | None = None) -> None:
        self.path = home / FILE if url is None else None
        self.place = str(self.path or _without_password(url or ""))
        self._turn, self._guard = threading.Lock(), threading.Lock()
        self._pending: list[_Pending] = []
        self._owner = -1  # an open, locked file
        self._connection: Connection | None = None  # that holds the advisory lock
        if self.path is not None:
            make_folder(home)
            _make_private(self.path)
        with self._guarded():
            self._engine = _connect(f"sqlite:///{self.path}" if url is None else url)
            try:
                self._open()
            except BaseException:
                self._engine.dispose()
                raise

    def _open(self) -> None:
        if self._engine.dialect.name == "sqlite":
            self._check_file()
        with self._engine.begin() as connection:
            found = _schema_version(connection)
            if found > SCHEMA:
                message = f"the jobs' database `{self.place}` has the version {found}; this Studio reads {SCHEMA}"
                raise StoreError(message, hint="update Studio, or choose another data folder with `--home`")
            if found < SCHEMA:
                TABLES.metadata.create_all(connection)
                connection.execute(TABLES.versions.insert().values(version=SCHEMA))

    def _check_file(self) -> None:
        """Raises StoreError for damage that a rebuild of the indexes does not mend."""
        with self._engine.connect() as connection:
            problems = _problems(connection)
            if problems and all("index" in each for each in problems):
                connection.exec_driver_sql("reindex")
                connection.commit()
                problems = _problems(connection)
        if problems:
            raise StoreError(DAMAGED.format(self.place, clean(problems[0], 100).splitlines()[0]), hint=RESTORE)

    def commit(self, work: Callable[[Transaction], T]) -> T:
        """Run `work` in a transaction that is durable when this returns. Raises StoreError; then nothing has happened.

        Several threads share one transaction, and so one wait for the disk. `work` may raise a StudioError only before
        it has changed anything.
        """
        mine = _Pending(work)
        with self._guard:
            self._pending.append(mine)
        with self._turn:
            if not mine.over:
                with self._guard:
                    together, self._pending = self._pending, []
                self._commit(together)
        if mine.error is not None:
            raise mine.error
        return cast(T, mine.result)

    def _commit(self, together: list[_Pending]) -> None:
        from sqlalchemy.exc import IntegrityError

        try:
            with self._guarded():
                try:
                    self._once(together)
                except IntegrityError:  # another process has added the same at the same time: now it is seen
                    self._once(together)
        except BaseException as error:
            for each in together:
                each.error = error
        for each in together:
            each.over = True

    def _once(self, together: list[_Pending]) -> None:
        with self._engine.begin() as connection:
            tables = Transaction(connection, self.place)
            for each in together:
                each.run(tables)

    @contextmanager
    def reading(self) -> Iterator[Transaction]:
        """A transaction that only reads: it waits for no writer."""
        with self._guarded(), self._engine.connect() as connection:
            connection.info["reads"] = True
            try:
                yield Transaction(connection, self.place)
            finally:
                connection.rollback()
                connection.info["reads"] = False

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Turn the errors of the database into StoreError."""
        import sqlite3

        from sqlalchemy.exc import DBAPIError, SQLAlchemyError

        try:
            yield
        except DBAPIError as error:
            cause = error.orig
            if self.path is not None and isinstance(cause, sqlite3.Error):
                raise _sqlite_error(cause, self.path) from None
            message = f"cannot use the jobs' database `{self.place}`: {str(cause).splitlines()[0][:200]}"
            raise StoreError(message, hint="check that the server runs and the URL is right") from None
        except UnicodeDecodeError:  # a damaged name, in SQLite's own message
            raise StoreError(DAMAGED.format(self.place, "it is not text"), hint=RESTORE) from None
        except SQLAlchemyError as error:
            raise StoreError(
                f"cannot use the jobs' database `{self.place}`: {str(error).splitlines()[0][:200]}"
            ) from None

    def own(self, note: str) -> str | None:
        """Make this process the only one that runs the jobs, until `close`. Returns the note of the owner before, or
        "" if there was none; None if another process is the owner.
        """
        if not (self._lock_server() if self.path is None else self._lock_file(self.path.with_name(LOCK))):
            return None
        return self.commit(lambda tables: tables.change_owner(note))

    def still_own(self) -> bool:
        """Whether this process is the owner still, or again: a PostgreSQL server may have been restarted."""
        if self.path is not None:
            return True
        from sqlalchemy.exc import SQLAlchemyError

        try:
            with self._guarded():
                return self._lock_server()
        except StoreError:
            with suppress(SQLAlchemyError):
                if self._connection is not None:
                    self._connection.invalidate()
            self._connection = None
            raise

    def _lock_file(self, path: Path) -> bool:
        if self._owner < 0:
            self._owner = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return try_lock(self._owner)

    def _lock_server(self) -> bool:
        """By an advisory lock of a connection that stays open."""
        if self._connection is None:
            self._connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        return bool(self._connection.exec_driver_sql(f"select pg_try_advisory_lock({_ADVISORY})").scalar())

    def close(self) -> None:
        """Close all connections, and release the ownership."""
        if self._owner >= 0:
            os.close(self._owner)
            self._owner = -1
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._engine.dispose()


@dataclass(eq=False)
class _Pending:
    """A piece of a transaction that waits for its turn."""

    work: Callable[[Transaction], Any]
    result: Any = None
    error: BaseException | None = None
    over: bool = False

    def run(self, tables: Transaction) -> None:
        self.error = None
        try:
            self.result = self.work(tables)
        except (UsageError, Busy) as error:
            self.error = error


def _make_private(path: Path) -> None:
    """Create the file if there is none, for its user only, as prompts are private; SQLite's other files follow it."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise store_error(path, "open", error) from error


def _connect(url: str) -> Engine:
    import sqlalchemy as sa

    if not url.startswith("sqlite:"):
        return sa.create_engine(url, pool_pre_ping=True)
    engine = sa.create_engine(url, connect_args={"timeout": _BUSY_MS / 1000, "check_same_thread": False})

    @sa.event.listens_for(engine, "connect")
    def prepare(connection: Any, _: object) -> None:
        connection.isolation_level = None  # transactions are begun below: sqlite3 would begin them without the lock
        connection.execute("pragma journal_mode=wal")
        connection.execute("pragma synchronous=full")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("begin" if connection.info.get("reads") else "begin immediate")

    return engine


def _problems(connection: Connection) -> list[str]:
    """What SQLite's integrity check finds, which includes a row that its indexes lack."""
    found = [str(row[0]) for row in connection.exec_driver_sql("pragma integrity_check(20)")]
    connection.rollback()
    return [] if found == ["ok"] else found


def _schema_version(connection: Connection) -> int:
    """The version of the tables; 0 if there are none."""
    import sqlalchemy as sa

    if not sa.inspect(connection).has_table("studio_versions"):
        return 0
    return int(connection.execute(sa.select(sa.func.max(TABLES.versions.c.version))).scalar() or 0)


def _sqlite_error(error: Any, path: Path) -> StoreError:
    import sqlite3

    code, said = getattr(error, "sqlite_errorcode", 0) & 0xFF, clean(str(error), 200).splitlines()[0]
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or said.startswith("Could not decode"):
        return StoreError(DAMAGED.format(path, said), hint=RESTORE)
    disk = os.statvfs(path.parent)
    if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and not disk.f_bavail):
        return store_error(path, "write", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    if code == sqlite3.SQLITE_READONLY:
        return store_error(path, "write", OSError(errno.EACCES, os.strerror(errno.EACCES)))
    hint = "it may be in use, or its disk may fail: try again, or choose another data folder with `--home`"
    return StoreError(f"cannot use the jobs' database `{path}`: {said}", hint=hint)


def _without_password(url: str) -> str:
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return "…"
