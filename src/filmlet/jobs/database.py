"""The queue's database: a SQLite file in the home folder, or PostgreSQL; DBOS' tables and ours."""

import secrets
import sqlite3
import sys
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from filmlet.errors import DatabaseGone, DatabaseUnusable
from filmlet.jobs.sqlite import (
    begin_immediate,
    disable_autocommit,
    enable_wal,
    patch_unixepoch,
    set_user_version,
    user_version,
)
from filmlet.settings import Settings

if TYPE_CHECKING:
    from dbos import DBOSClient, WorkflowStatus

Row = Mapping[str, Any]

KEEPALIVES = {  # seconds, and a number of probes: a server that is cut off is noticed within 30 s
    "connect_timeout": "10",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",  # milliseconds
}

JOBS = """
create table filmlet_job (
    id text primary key,
    run integer not null default 1,
    owner text not null,
    key text,
    status text not null default 'queued',
    class text not null,
    rank integer not null,
    request text not null,
    model text not null,
    seed bigint not null,
    work text not null,
    effective text,
    stage text,
    done integer not null default 0,
    total integer not null default 0,
    preview text,
    seq integer not null default 0,
    beat double precision,
    cancel double precision,
    worker text,
    attempt integer not null default 0,
    stages text not null default '[]',
    failure_code text,
    failure text,
    clip text,
    bytes bigint not null default 0,
    created double precision not null,
    queued double precision not null,
    started double precision,
    finished double precision,
    idle_s double precision,
    unique (owner, key)
)
"""
WORKERS = """
create table filmlet_worker (
    id text primary key,
    token text not null,
    home text not null,
    device text not null,
    speed double precision not null,
    model text not null default '',
    beat double precision not null,
    dead integer not null default 0
)
"""
COSTS = """
create table filmlet_cost (
    model text not null,
    device text not null,
    stage text not null,
    units double precision not null,
    seconds double precision not null,
    at double precision not null
)
"""


def _create_tables(connection: Connection) -> None:
    for statement in (JOBS, WORKERS, COSTS):
        connection.execute(sa.text(statement))
    for index in (
        "create index filmlet_job_status on filmlet_job (status, rank, queued)",
        "create index filmlet_job_owner on filmlet_job (owner, created)",
        "create index filmlet_cost_at on filmlet_cost (model, device, stage, at)",
    ):
        connection.execute(sa.text(index))


def _add_server_tables(connection: Connection) -> None:
    """Add a server's columns and tables: shapes and sources of jobs, keys, their use, metrics."""
    for statement in (
        "alter table filmlet_job add column shape text",
        "alter table filmlet_job add column source text",
        "alter table filmlet_worker add column peak_bytes bigint not null default 0",
        """
        create table filmlet_key (
            id text primary key,
            name text not null unique,
            hash text not null unique,
            admin integer not null,
            max_active integer,
            max_per_minute integer,
            seconds_per_day double precision,
            webhook text,
            webhook_secret text,
            created double precision not null
        )
        """,
        """
        create table filmlet_use (
            owner text not null,
            at double precision not null,
            seconds double precision not null
        )
        """,
        "create index filmlet_use_owner on filmlet_use (owner, at)",
        """
        create table filmlet_tally (
            name text not null,
            label text not null,
            count bigint not null,
            seconds double precision not null,
            primary key (name, label)
        )
        """,
    ):
        connection.execute(sa.text(statement))


def _add_worker_machine(connection: Connection) -> None:
    """Add the device of a worker, so that a plan can say how a model will be offloaded there."""
    connection.execute(sa.text("alter table filmlet_worker add column machine text"))


def _add_paging_indexes(connection: Connection) -> None:
    """A page of jobs, of everybody's or one owner's, costs the same however many there are."""
    for statement in (
        "drop index filmlet_job_owner",
        "create index filmlet_job_owner on filmlet_job (owner, created, id)",
        "create index filmlet_job_created on filmlet_job (created, id)",
    ):
        connection.execute(sa.text(statement))


def _add_identity_and_trimmed(connection: Connection) -> None:
    """Add the identity of the database, and whether a job's unneeded files are deleted.

    identity: random, written into the storage too: only its own database may delete there.
    """
    for statement in (
        "create table filmlet_identity (id text not null)",
        "alter table filmlet_job add column trimmed integer not null default 0",
    ):
        connection.execute(sa.text(statement))
    identity = {"id": secrets.token_hex(16)}
    connection.execute(sa.text("insert into filmlet_identity values (:id)"), identity)


def _add_file_names(connection: Connection) -> None:
    """What the files of a job were called where they came from, by their names in its folder."""
    connection.execute(sa.text("alter table filmlet_job add column file_names text"))


# A change of the schema is a new function at the end.
MIGRATIONS = (
    _create_tables,
    _add_server_tables,
    _add_worker_machine,
    _add_paging_indexes,
    _add_identity_and_trimmed,
    _add_file_names,
)


class Database:
    """An open database with its schema. Raises DatabaseUnusable."""

    def __init__(self, settings: Settings) -> None:
        path = settings.home / "filmlet.sqlite"
        self.url = settings.database_url or f"sqlite:///{path}"
        self.is_sqlite = self.url.startswith("sqlite")
        self.file: Path | None = None  # of SQLite
        self.now = (
            "((julianday('now') - 2440587.5) * 86400.0)"
            if self.is_sqlite
            else "cast(extract(epoch from clock_timestamp()) as double precision)"
        )
        self.prompt = (  # of a job's row
            "json_extract(request, '$.prompt')"
            if self.is_sqlite
            else "(cast(request as json) ->> 'prompt')"
        )
        self.sql_placeholders = self.now, self.prompt
        with self._as_database_error():
            if self.is_sqlite:
                self.file = Path(self.url.removeprefix("sqlite:///"))
                self.file.parent.mkdir(parents=True, exist_ok=True)
                enable_wal(self.file)
                self.inode = _inode(self.file)
                patch_unixepoch()
            else:
                self.url = _with_keepalives(self.url)
            self.engine = self._engine()
            try:
                self._migrate_dbos()
                self._migrate()
            except BaseException:
                self.engine.dispose()
                raise

    def _engine(self) -> Engine:
        url = sa.make_url(self.url)
        if self.is_sqlite:
            engine = sa.create_engine(url, connect_args={"timeout": 30})
            sa.event.listen(engine, "connect", disable_autocommit)
            sa.event.listen(engine, "begin", begin_immediate)
            return engine
        if url.drivername == "postgresql":
            url = url.set(drivername="postgresql+psycopg")
        return sa.create_engine(url, pool_pre_ping=True)

    def _migrate_dbos(self) -> None:
        """Bring DBOS' tables up to date; SQLite remembers for which release of DBOS they are.

        Reading a queue then takes no DBOS, which takes longer to import than all else.
        """
        release = zlib.crc32(version("dbos").encode()) >> 1  # `user_version` is signed
        if self.file and user_version(self.file) == release:
            return
        from dbos import DBOS

        DBOS.migrate(self.url)
        if self.file:
            set_user_version(self.file, release)

    def _migrate(self) -> None:
        with self.engine.begin() as connection:
            Transaction(connection, self).lock("schema")
            connection.execute(
                sa.text("create table if not exists filmlet_schema (version integer not null)")
            )
            latest = sa.text("select max(version) from filmlet_schema")
            version: int = connection.execute(latest).scalar() or 0
            if version > len(MIGRATIONS):
                raise DatabaseUnusable(
                    f"The database was written by a newer filmlet (schema {version}, this one "
                    f"knows {len(MIGRATIONS)}); update filmlet."
                )
            for number, change in enumerate(MIGRATIONS[version:], start=version + 1):
                change(connection)
                connection.execute(
                    sa.text("insert into filmlet_schema values (:version)"), {"version": number}
                )

    @cached_property
    def client(self) -> "DBOSClient":
        """The DBOS client of the same database."""
        from dbos import DBOSClient

        with self._as_database_error():
            return DBOSClient(system_database_url=self.url, retry_connection_errors=False)

    @cached_property
    def identity(self) -> str:
        """The random id of this database."""
        with self.read() as t:
            row = t.row("select id from filmlet_identity")
        assert row
        return str(row["id"])

    def pending_workflows(self, worker: str) -> "list[WorkflowStatus]":
        """Return the unfinished workflows of a worker. Raises DatabaseUnusable."""
        with self._as_database_error():
            return self.client.list_workflows(
                status="PENDING", executor_id=worker, load_input=False
            )

    def resume_workflows(self, ids: Sequence[str], queue: str) -> None:
        """Requeue workflows. Raises DatabaseUnusable."""
        with self._as_database_error():
            self.client.resume_workflows([*ids], queue_name=queue)

    def cancel_workflow(self, id: str) -> None:
        """Remove a workflow from its queue. Raises DatabaseUnusable."""
        with self._as_database_error():
            self.client.cancel_workflow(id)

    def delete_workflows(self, ids: Sequence[str]) -> None:
        """Delete workflows; missing ones are no error. Raises DatabaseUnusable."""
        with self._as_database_error():
            self.client.delete_workflows([*ids])

    @contextmanager
    def read(self) -> Iterator["Reader"]:
        """Yield a reader whose statements see one state of the database."""
        with self._as_database_error():
            if self.is_sqlite:
                with closing(self.engine.raw_connection()) as lent:  # undoes it, by the pool
                    assert isinstance(lent.driver_connection, sqlite3.Connection)
                    lent.driver_connection.execute("begin")
                    yield SQLiteReader(lent.driver_connection, self.sql_placeholders)
            else:
                with self.engine.connect() as connection:
                    yield Transaction(connection, self)

    @contextmanager
    def transaction(self) -> Iterator["Transaction"]:
        """Yield a transaction; it commits at the end and rolls back on an error."""
        with self._as_database_error(), self.engine.begin() as connection:
            yield Transaction(connection, self)

    @contextmanager
    def _as_database_error(self) -> Iterator[None]:
        """Turn errors of the drivers and of DBOS into DatabaseUnusable."""
        self._check_file()
        try:
            yield
        except Exception as error:
            if not isinstance(error, (SQLAlchemyError, sqlite3.Error, OSError, *_dbos_errors())):
                raise
            cause = error.orig if isinstance(error, DBAPIError) else error
            reason = " ".join(str(cause).split()) or type(cause).__name__
            location = sa.make_url(self.url).set(query={}).render_as_string(hide_password=True)
            raise DatabaseUnusable(f"The database {location} cannot be used: {reason}.") from error

    def _check_file(self) -> None:
        """Raise DatabaseGone where connections are open to a file that has no name any more."""
        if self.file and "inode" in vars(self) and _inode(self.file) != self.inode:
            raise DatabaseGone(
                "The database file was deleted or replaced while filmlet used it; "
                "nothing more is written. Restart filmlet."
            )

    def close(self) -> None:
        """Close all connections."""
        if "client" in vars(self):
            self.client.destroy()
        self.engine.dispose()


def _dbos_errors() -> tuple[type[Exception], ...]:
    """Return the root of DBOS' errors, once it is loaded and may have raised one."""
    module = sys.modules.get("dbos.error")
    return (module.DBOSException,) if module else ()


class Reader(ABC):
    """Runs one statement at a time; all of them see one state.

    `{now}` in it is the database's clock, in seconds; `{prompt}` the prompt in a job's row.
    """

    @abstractmethod
    def rows(self, statement: str, **values: Any) -> list[Row]: ...

    def row(self, statement: str, **values: Any) -> Row | None:
        rows = self.rows(statement, **values)
        return rows[0] if rows else None


class SQLiteReader(Reader):
    """Reads with sqlite3 alone: SQLAlchemy doubles the time of a status poll."""

    def __init__(self, connection: sqlite3.Connection, placeholders: tuple[str, str]) -> None:
        self.connection, self.words = connection, placeholders

    def rows(self, statement: str, **values: Any) -> list[Row]:
        cursor = self.connection.execute(_as_text(statement, *self.words), values)
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor]


class Transaction(Reader):
    """Runs statements that may write."""

    def __init__(self, connection: Connection, database: Database) -> None:
        self.connection, self._database = connection, database

    def lock(self, name: str) -> None:
        """Take a lock by name until the end; SQLite's transactions exclude each other anyhow."""
        if not self._database.is_sqlite:
            self.rows("select pg_advisory_xact_lock(hashtext(:name))", name=f"filmlet/{name}")

    def rows(self, statement: str, **values: Any) -> list[Row]:
        done = self.connection.execute(_clause(statement, *self._database.sql_placeholders), values)
        return [*done.mappings()] if done.returns_rows else []


@cache
def _as_text(statement: str, now: str, prompt: str) -> str:
    return statement.format(now=now, prompt=prompt)


@cache
def _clause(statement: str, now: str, prompt: str) -> sa.TextClause:
    """Return a parsed statement."""
    return sa.text(_as_text(statement, now, prompt))


def count_event(t: Transaction, name: str, label: str, seconds: float = 0.0) -> None:
    """Count an event and its seconds, for metrics."""
    t.rows(
        "insert into filmlet_tally values (:name, :label, 1, :seconds) on conflict (name, label)"
        " do update set count = filmlet_tally.count + 1,"
        " seconds = filmlet_tally.seconds + excluded.seconds",
        name=name, label=label, seconds=seconds,
    )  # fmt: skip


def _inode(file: Path) -> tuple[int, int] | None:
    """Return device and inode of a file, None if there is none."""
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _with_keepalives(url: str) -> str:
    """Return the URL with libpq's keepalive parameters, unless it has them."""
    parsed = sa.make_url(url)
    missing = {name: value for name, value in KEEPALIVES.items() if name not in parsed.query}
    return parsed.update_query_dict(missing).render_as_string(hide_password=False)
