"""The jobs' database: what is committed stays, and damage is never silent."""

from __future__ import annotations

import random
import shutil
import sqlite3
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import studio
from studio.errors import StoreError, StudioError, UsageError
from studio.jobs.database import FILE, SCHEMA, Database
from studio.jobs.job import Job, JobEvent, JobState
from studio.recipe import MediaRef


def job(number, **more):
    work = studio.JobSpec(generator="note", inputs={"text": f"text {number}" * 9}, seed=number)
    return Job(**{"id": f"job{number:04d}", "work": work, "order": float(number), "created": float(number)} | more)


def fill(database, count=60):
    def add(tables):
        for number in range(count):
            tables.add(job(number))
            tables.add_events(f"job{number:04d}", [JobEvent(n, "state", {"state": "queued"}) for n in range(1, 4)])

    database.commit(add)


def everything(database):
    with database.reading() as tables:
        return [(each, tables.events(each.id)) for each in tables.jobs()]


@pytest.fixture
def database(tmp_path):
    found = Database(tmp_path)
    yield found
    found.close()


def test_what_is_committed_is_there_for_the_next(tmp_path):
    first = Database(tmp_path)
    fill(first)
    expected = everything(first)
    second = Database(tmp_path)  # the first was not closed, as after a kill
    assert everything(second) == expected
    first.close()
    second.close()


def test_every_commit_waits_for_the_disk(database):
    with database._engine.connect() as connection:
        assert connection.exec_driver_sql("pragma journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("pragma synchronous").scalar() == 2


def test_a_refused_change_leaves_the_others_of_its_transaction(database):
    def refuse(tables):
        raise UsageError("no")

    barrier, errors = threading.Barrier(20), []

    def work(number):
        barrier.wait()
        try:
            database.commit(refuse if number % 2 else lambda tables: tables.add(job(number)))
        except UsageError as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(errors) == 10
    with database.reading() as tables:
        assert sorted(each.id for each in tables.jobs()) == [f"job{n:04d}" for n in range(0, 20, 2)]


def test_a_failed_transaction_changes_nothing(database):
    database.commit(lambda tables: tables.add(job(1)))

    def twice(tables):
        tables.add(job(2))
        tables.add(job(1))

    with pytest.raises(StoreError, match="cannot use the jobs' database"):
        database.commit(twice)
    with database.reading() as tables:
        assert [each.id for each in tables.jobs()] == ["job0001"]


def test_the_result_of_a_node_is_replaced_and_read(database):
    first, second = (MediaRef(sha256=each * 64, media_type="text/plain") for each in "ab")
    for made in (first, second):
        database.commit(lambda tables, made=made: tables.add_node("job", "key", made))
    with database.reading() as tables:
        assert tables.node("job", "key") == second
        assert tables.node("job", "other") is None


def test_a_newer_version_is_refused_in_one_sentence(tmp_path):
    Database(tmp_path).close()
    with sqlite3.connect(tmp_path / FILE) as file:
        file.execute(f"insert into studio_versions values ({SCHEMA + 1})")
    with pytest.raises(StoreError, match=f"has the version {SCHEMA + 1}; this Studio reads {SCHEMA}"):
        Database(tmp_path)


def test_a_lost_index_entry_is_rebuilt(tmp_path):
    database = Database(tmp_path)
    fill(database)
    expected = everything(database)
    database.close()
    with sqlite3.connect(tmp_path / FILE) as file:
        file.execute("pragma writable_schema=on")
        sql = file.execute("select sql from sqlite_schema where name = 'jobs_queue'").fetchone()[0]
        file.execute("update sqlite_schema set sql = ? where name = 'jobs_queue'", (sql + " where place > 30",))
    with sqlite3.connect(tmp_path / FILE) as file:
        file.execute("pragma writable_schema=on")
        file.execute("reindex jobs_queue")
        file.execute("update sqlite_schema set sql = ? where name = 'jobs_queue'", (sql,))
    found = Database(tmp_path)
    assert everything(found) == expected
    assert _check(tmp_path / FILE) == "ok"
    found.close()


def _check(path):
    with sqlite3.connect(path) as file:
        return file.execute("pragma integrity_check").fetchone()[0]


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("filled")
    database = Database(folder)
    fill(database)
    expected = everything(database)
    database.close()
    return folder / FILE, expected


@pytest.mark.parametrize("kind", ["flip", "zero", "cut", "noise", "swap"])
def test_damage_is_never_silent(filled, tmp_path, kind):
    """200 damaged files: what is read is what was written, or an error says that it is not."""
    source, expected = filled
    refused = 0
    for number in range(40):
        chance = random.Random(f"{kind} {number}")
        data = bytearray(source.read_bytes())
        damage(data, kind, chance)
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / FILE).write_bytes(data)
        error = look(folder, expected)
        if error is not None:
            refused += 1
            assert str(folder / FILE) in error.message
            assert "\n" not in error.message
        shutil.rmtree(folder)
    assert refused, "some damage must have mattered"


def look(folder, expected):
    """Read everything of a damaged file: it is as expected, or there is an error."""
    try:
        found = Database(folder)
        try:
            assert everything(found) == expected
        finally:
            found.close()
    except StoreError as error:
        return error
    return None


def damage(data, kind, chance):
    at = chance.randrange(len(data))
    size = min(chance.randrange(1, 3000), len(data) - at)
    if kind == "flip":
        data[at] ^= 1 << chance.randrange(8)
        for _ in range(chance.randrange(20)):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    elif kind == "zero":
        data[at : at + size] = bytes(size)
    elif kind == "cut":
        del data[at:]
    elif kind == "noise":
        data[at : at + size] = chance.randbytes(size)
    else:
        pages = len(data) // 4096
        one, other = (chance.randrange(pages) * 4096 for _ in range(2))
        data[one : one + 4096], data[other : other + 4096] = data[other : other + 4096], data[one : one + 4096]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(JobState), st.sampled_from(["", "ann"])), max_size=12))
def test_queries_agree_with_a_list(tmp_path_factory, changes):
    database = Database(tmp_path_factory.mktemp("state"))
    kept: dict[str, Job] = {}

    def apply(tables):
        for number, state, client in changes:
            made = job(number, state=state, client=client)
            (tables.save if made.id in kept else tables.add)(made)
            kept[made.id] = made

    database.commit(apply)
    with database.reading() as tables:
        for state in JobState:
            expected = {each.id for each in kept.values() if each.state is state}
            assert {each.id for each in tables.jobs([state])} == expected
            assert tables.count([state]) == len(expected)
        queued = [each for each in kept.values() if each.state is JobState.QUEUED]
        assert tables.clients(background=False) == sorted({each.client for each in queued})
        for client in {each.client for each in queued}:
            mine = sorted((each for each in queued if each.client == client), key=lambda each: each.order)
            assert tables.jobs([JobState.QUEUED], client, by_order=True) == mine
    database.close()


def test_an_unusable_place_is_an_error(tmp_path):
    (tmp_path / FILE).mkdir()
    with pytest.raises(StudioError, match=FILE):
        Database(tmp_path)
    with pytest.raises(StoreError, match="cannot use the jobs' database"):
        Database(tmp_path, "nonsense")


def test_only_its_user_can_read_it(tmp_path):
    database = Database(tmp_path)
    database.commit(lambda tables: None)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("jobs.sqlite*")} == {0o600}
    database.close()
