"""The tables of the jobs' database, and what a transaction reads and writes in them.

Every row has a checksum over its values, so that a damaged one is found when it is read, and never used.

Try it: ``pytest tests/studio/jobs/test_database.py``
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from studio.caching import cached_property
from studio.errors import StoreError, UnknownName
from studio.jobs.job import ENDED, Job, JobEvent, JobState
from studio.recipe import MediaRef

if TYPE_CHECKING:
    from sqlalchemy import Connection, RowMapping

DAMAGED = "the jobs' database `{}` is damaged: {}"
RESTORE = "restore it from a backup, or move it away to start with an empty queue; outputs stay in the store"


class Transaction:
    """What a transaction can read and write. Every method raises StoreError for a damaged row."""

    def __init__(self, connection: Connection, place: str) -> None:
        self._connection, self._place = connection, place

    def add(self, job: Job) -> None:
        """Insert a job."""
        self._connection.execute(TABLES.jobs.insert().values(**_row(job)))

    def find(self, id: str) -> Job | None:
        """The job with this id, which no other transaction changes until this one ends, or None."""
        query = TABLES.jobs.select().where(TABLES.jobs.c.id == id).with_for_update()
        row = self._connection.execute(query).mappings().first()
        return None if row is None else self._job(row)

    def get(self, id: str) -> Job:
        """The same. Raises UnknownName if there is none."""
        if (found := self.find(id)) is None:
            raise UnknownName("job", id[:100], ())
        return found

    def save(self, job: Job) -> None:
        """Replace a job."""
        self._connection.execute(TABLES.jobs.update().where(TABLES.jobs.c.id == job.id), _row(job))

    def by_key(self, client: str, key: str) -> Job | None:
        """The job that a client added with this idempotency key, or None."""
        jobs = TABLES.jobs
        row = (
            self._connection.execute(jobs.select().where(jobs.c.client == client, jobs.c.key == key)).mappings().first()
        )
        return None if row is None else self._job(row)

    def jobs(
        self,
        states: Iterable[JobState] = (),
        client: str | None = None,
        *,
        background: bool | None = None,
        asked: bool = False,
        by_order: bool = False,
        after: Job | None = None,
        limit: int | None = None,
    ) -> list[Job]:
        """The jobs in these states (none: in any), newest first, or in the queue's order; `asked` are only those that
        were asked to do something, and `after` is the last job of the page before.
        """
        jobs = TABLES.jobs
        query = jobs.select().order_by(*((jobs.c.place, jobs.c.id) if by_order else (jobs.c.created.desc(), jobs.c.id)))
        if wanted := tuple(states):
            query = query.where(jobs.c.state.in_(wanted))
        if client is not None:
            query = query.where(jobs.c.client == client)
        if background is not None:
            query = query.where(jobs.c.background == background)
        if asked:
            query = query.where(jobs.c.asked != "")
        if after is not None:
            older = (jobs.c.created == after.created) & (jobs.c.id > after.id)
            query = query.where((jobs.c.created < after.created) | older)
        rows = self._connection.execute(query.limit(limit)).mappings().all()
        return [self._job(row) for row in rows]

    def clients(self, *, background: bool) -> list[str]:
        """The clients with queued jobs of this priority, in one step of the index each."""
        jobs, found = TABLES.jobs, list[str]()
        queued = (jobs.c.state == JobState.QUEUED, jobs.c.background == background)
        import sqlalchemy as sa

        query = sa.select(jobs.c.client).where(*queued).order_by(jobs.c.client).limit(1)
        client = self._connection.execute(query).scalar()
        while client is not None:
            found.append(client)
            client = self._connection.execute(query.where(jobs.c.client > client)).scalar()
        return found

    def count(self, states: Iterable[JobState]) -> int:
        """The number of jobs in these states."""
        import sqlalchemy as sa

        query = sa.select(sa.func.count()).select_from(TABLES.jobs).where(TABLES.jobs.c.state.in_(tuple(states)))
        return int(self._connection.execute(query).scalar_one())

    def edge(self, *, first: bool) -> float:
        """The lowest or the highest place in the queue of all jobs; 0 if there is none."""
        import sqlalchemy as sa

        place = TABLES.jobs.c.place
        found = self._connection.execute(sa.select(sa.func.min(place) if first else sa.func.max(place))).scalar()
        return float(found or 0.0)

    def place_before(self, job: Job, moved: Job) -> float | None:
        """A place just before a job's, for a moved job; None if there is no number between it and the next."""
        import sqlalchemy as sa

        jobs = TABLES.jobs.c
        below = (jobs.place < job.order, jobs.id != moved.id, jobs.state.not_in(ENDED))
        low = self._connection.execute(sa.select(sa.func.max(jobs.place)).where(*below)).scalar()
        if low is None:
            return job.order - 1
        middle = (low + job.order) / 2
        return middle if low < middle < job.order else None

    def renumber(self) -> None:
        """Give all jobs that have not ended whole numbers as places, in the same order."""
        for number, job in enumerate(self.jobs([each for each in JobState if not each.ended], by_order=True)):
            self.save(self.get(job.id).model_copy(update={"order": float(number)}))

    def remove(self, ids: Sequence[str]) -> None:
        """Delete jobs with their events and nodes."""
        import sqlalchemy as sa

        for table, column in ((TABLES.events, "job"), (TABLES.nodes, "job"), (TABLES.jobs, "id")):
            self._connection.execute(sa.delete(table).where(table.c[column].in_(ids)))

    def add_events(self, id: str, events: Iterable[JobEvent]) -> None:
        """Insert events of a job."""
        rows = [
            {"job": id, "number": each.number, "body": (body := each.to_json()), "seal": _seal(id, each.number, body)}
            for each in events
        ]
        if rows:
            self._connection.execute(TABLES.events.insert(), rows)

    def events(self, id: str, after: int = 0) -> list[JobEvent]:
        """The stored events of a job above a number, in order."""
        events = TABLES.events
        query = events.select().where(events.c.job == id, events.c.number > after).order_by(events.c.number)
        return [self._event(row) for row in self._connection.execute(query).mappings()]

    def last_number(self, id: str) -> int:
        """The number of a job's last stored event, or 0."""
        import sqlalchemy as sa

        events = TABLES.events
        query = sa.select(sa.func.max(events.c.number)).where(events.c.job == id)
        return int(self._connection.execute(query).scalar() or 0)

    def node(self, id: str, key: str) -> MediaRef | None:
        """The committed result of a node of a workflow job, or None."""
        nodes = TABLES.nodes
        row = self._connection.execute(nodes.select().where(nodes.c.job == id, nodes.c.key == key)).mappings().first()
        if row is None:
            return None
        self._check(row, id, key, row["sha256"], row["media_type"])
        return MediaRef(sha256=row["sha256"], media_type=row["media_type"])

    def change_owner(self, note: str) -> str:
        """Replace the note of the process that runs the jobs; returns that of the one before, or ""."""
        before = self._connection.execute(TABLES.owners.select()).scalars("note").first()
        self._connection.execute(TABLES.owners.delete())
        self._connection.execute(TABLES.owners.insert().values(note=note))
        return str(before or "")

    def node_hashes(self) -> set[str]:
        """The hashes of all committed results of nodes."""
        return set(self._connection.execute(TABLES.nodes.select()).scalars("sha256"))

    def add_node(self, id: str, key: str, made: MediaRef) -> None:
        """Commit the result of a node."""
        nodes, row = TABLES.nodes, made.model_dump()
        self._connection.execute(nodes.delete().where(nodes.c.job == id, nodes.c.key == key))
        seal = _seal(id, key, made.sha256, made.media_type)
        self._connection.execute(nodes.insert().values(job=id, key=key, seal=seal, **row))

    def _job(self, row: RowMapping) -> Job:
        self._check(row, *(row[name] for name in _SEALED))
        return Job.from_json(row["body"])

    def _event(self, row: RowMapping) -> JobEvent:
        self._check(row, row["job"], row["number"], row["body"])
        data = json.loads(row["body"])
        return JobEvent(data.pop("number"), data.pop("type"), data)

    def _check(self, row: RowMapping, *values: object) -> None:
        if row["seal"] != _seal(*values):
            name = row.get("id", row.get("job"))
            raise StoreError(DAMAGED.format(self._place, f"a row of the job `{str(name)[:50]}`"), hint=RESTORE)


_SEALED = ("id", "client", "background", "place", "state", "asked", "key", "created", "body")


def _row(job: Job) -> dict[str, Any]:
    row = {
        "id": job.id, "client": job.client, "background": job.background, "place": job.order, "state": job.state.value,
        "asked": job.asked, "key": job.key, "created": job.created, "body": job.to_json(),
    }  # fmt: skip
    return {**row, "seal": _seal(*(row[name] for name in _SEALED))}


def _seal(*values: object) -> int:
    """A checksum of the values of a row."""
    return zlib.crc32(repr(values).encode("utf-8", "surrogatepass"))


class _Tables:
    """The tables, defined when SQLAlchemy is first needed."""

    @cached_property
    def metadata(self) -> Any:
        import sqlalchemy as sa

        found = sa.MetaData()
        sa.Table("studio_versions", found, sa.Column("version", sa.Integer, primary_key=True))
        sa.Table("owners", found, sa.Column("note", sa.Text, primary_key=True))
        sa.Table(
            "jobs", found,
            sa.Column("id", sa.Text, primary_key=True),
            sa.Column("client", sa.Text, nullable=False),
            sa.Column("background", sa.Boolean, nullable=False),
            sa.Column("place", sa.Double, nullable=False, index=True),
            sa.Column("state", sa.Text, nullable=False),
            sa.Column("asked", sa.Text, nullable=False),
            sa.Column("key", sa.Text),
            sa.Column("created", sa.Double, nullable=False, index=True),
            sa.Column("body", sa.Text, nullable=False),
            sa.Column("seal", sa.BigInteger, nullable=False),
            sa.Index("jobs_queue", "state", "background", "client", "place"),
            sa.UniqueConstraint("client", "key"),
        )  # fmt: skip
        sa.Table(
            "events", found,
            sa.Column("job", sa.Text, primary_key=True),
            sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
            sa.Column("body", sa.Text, nullable=False),
            sa.Column("seal", sa.BigInteger, nullable=False),
        )  # fmt: skip
        sa.Table(
            "nodes", found,
            sa.Column("job", sa.Text, primary_key=True),
            sa.Column("key", sa.Text, primary_key=True),
            sa.Column("sha256", sa.Text, nullable=False),
            sa.Column("media_type", sa.Text, nullable=False),
            sa.Column("seal", sa.BigInteger, nullable=False),
        )  # fmt: skip
        return found

    def __getattr__(self, name: str) -> Any:
        tables = self.metadata.tables
        return tables["studio_versions" if name == "versions" else name]


TABLES = _Tables()
