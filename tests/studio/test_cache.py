"""A cache whose file is damaged in any way goes on, empty or with what is still right."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from studio.cache import SqliteCache
from studio.errors import StoreError

SCHEMA = "create table if not exists kept (key text primary key, value text);"


def put(file: sqlite3.Connection) -> None:
    file.execute("insert or replace into kept values ('a', 'b')")


def count(file: sqlite3.Connection) -> int:
    return int(file.execute("select count(*) from kept").fetchone()[0])


def test_what_is_kept_is_there_again(tmp_path: Path) -> None:
    with SqliteCache(tmp_path / "new" / "c.sqlite3", SCHEMA) as cache:
        cache.transact(put)
    with SqliteCache(tmp_path / "new" / "c.sqlite3", SCHEMA) as cache:
        assert cache.transact(count) == 1
        assert not cache.renewed


def test_a_failed_transaction_leaves_nothing(tmp_path: Path) -> None:
    with SqliteCache(tmp_path / "c.sqlite3", SCHEMA) as cache:

        def fail(file: sqlite3.Connection) -> None:
            put(file)
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            cache.transact(fail)
        assert cache.transact(count) == 0


def test_garbage_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "c.sqlite3").write_bytes(b"garbage" * 1000)
    with SqliteCache(tmp_path / "c.sqlite3", SCHEMA) as cache:
        cache.transact(put)
        assert (cache.renewed, cache.transact(count)) == (True, 1)


def test_what_is_not_a_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "c.sqlite3").mkdir()
    with pytest.raises(StoreError, match=r"c\.sqlite3.*unable to open"):
        SqliteCache(tmp_path / "c.sqlite3", SCHEMA)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(at=0.328125, value=128, cut=False)  # a name that is not UTF-8
@given(at=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255), cut=st.booleans())
def test_any_damaged_byte_costs_at_most_what_was_kept(tmp_path: Path, at: float, value: int, cut: bool) -> None:
    path = tmp_path / "c.sqlite3"
    for each in tmp_path.iterdir():
        each.unlink()
    with SqliteCache(path, SCHEMA) as cache:
        cache.transact(put)
    data = bytearray(path.read_bytes())
    place = int(at * len(data))
    data[place] = value
    path.write_bytes(data[:place] if cut else data)
    with SqliteCache(path, SCHEMA) as cache:
        cache.transact(put)
        assert cache.transact(count) >= 1


@pytest.mark.parametrize(
    ("code", "what"), [(sqlite3.SQLITE_FULL, errno.ENOSPC), (sqlite3.SQLITE_READONLY, errno.EACCES), (0, 0)]
)
def test_a_disk_that_takes_nothing_is_named_as_such(tmp_path: Path, code: int, what: int) -> None:
    def work(file: sqlite3.Connection) -> None:
        if code == sqlite3.SQLITE_FULL:
            file.execute("pragma max_page_count = 1")
            file.execute("create table large as select randomblob(100000)")
        elif code == sqlite3.SQLITE_READONLY:
            file.execute("pragma query_only = 1")
            put(file)
        else:
            file.execute("nonsense")

    with SqliteCache(tmp_path / "c.sqlite3", SCHEMA) as cache, pytest.raises(StoreError) as caught:
        cache.transact(work)
    assert str(tmp_path / "c.sqlite3") in caught.value.message
    assert (os.strerror(what) in caught.value.message) == bool(what)
    assert "remove the file" not in (caught.value.hint or "")
    assert "--home" in (caught.value.hint or "")
