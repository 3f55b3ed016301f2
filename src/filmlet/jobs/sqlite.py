"""How connections to SQLite are opened: write-ahead log, transactions, a function that it lacks."""

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine


def enable_wal(file: Path) -> None:
    """Enable write-ahead logging: readers do not wait for the writer."""
    with sqlite3.connect(file, timeout=30) as connection:
        connection.execute("pragma journal_mode=wal")
    connection.close()


def user_version(file: Path) -> int:
    """Return the number that a file carries for its application, 0 at first."""
    with closing(sqlite3.connect(file, timeout=30)) as connection:
        return int(connection.execute("pragma user_version").fetchone()[0])


def set_user_version(file: Path, number: int) -> None:
    """Set the number that a file carries for its application."""
    with closing(sqlite3.connect(file, timeout=30)) as connection:
        connection.execute(f"pragma user_version = {number}")
        connection.commit()


def patch_unixepoch() -> None:
    """Add `unixepoch('subsec')`, which SQLite has since 3.42 and DBOS needs, to connections.

    Debian 12 has 3.40: there DBOS' times would be null. DBOS opens connections of its own.
    """
    if sqlite3.sqlite_version_info < (3, 42) and not sa.event.contains(*SUBSECONDS):
        sa.event.listen(*SUBSECONDS)


def _knows_subseconds(connection: Any, _: object) -> None:
    if isinstance(connection, sqlite3.Connection):
        connection.create_function("unixepoch", 1, _now)


def _now(of: object) -> float:
    if of != "subsec":  # which is all that DBOS asks
        raise ValueError(of)
    return time.time()


SUBSECONDS = Engine, "connect", _knows_subseconds


def disable_autocommit(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None


def begin_immediate(connection: Connection) -> None:
    """Take the write lock at once: an upgrade later fails instead of waiting."""
    connection.exec_driver_sql("begin immediate")
