"""Backup of the SQLite file in the storage, for machines whose disk is lost at a restart."""

import logging
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

from filmlet.errors import FilmletError
from filmlet.jobs.object_storage import open_storage
from filmlet.media import partial_path
from filmlet.settings import Settings

log = logging.getLogger("filmlet.snapshot")

NAME = "queue.sqlite"
EVERY_S = 5.0
STATE = (  # heartbeats are no change
    "select count(*), sum(seq), (select max(at) from filmlet_cost) from filmlet_job"
)


@contextmanager
def run_with_backups(settings: Settings) -> Iterator[None]:
    """Restore the backup if there is no database file; keep it up to date meanwhile.

    Only where clips are stored elsewhere and the queue is a file. Raises StorageUnusable.
    """
    if settings.storage_url is None or settings.database_url is not None:
        yield
        return
    snapshot = DatabaseBackup(settings)
    snapshot.restore()
    stopping = threading.Event()
    thread = threading.Thread(target=snapshot.run, args=(stopping,), name="snapshot", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


class DatabaseBackup:
    """Backs up the SQLite file of the settings."""

    def __init__(self, settings: Settings) -> None:
        self.file = settings.home / "filmlet.sqlite"
        self.storage = open_storage(settings)

    def restore(self) -> None:
        """Restore the backup unless there is a file already; its workers are marked as dead."""
        if self.file.exists() or not self.storage.exists(NAME):
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        part = partial_path(self.file)
        self.storage.download(NAME, part)
        with closing(sqlite3.connect(part)) as copy, copy:
            copy.execute("update filmlet_worker set dead = 1")
        part.replace(self.file)
        log.info("the queue goes on from its copy")

    def run(self, stopping: threading.Event) -> None:
        """Back up whenever something has changed, and once more at the end."""
        saved_version = ""
        while True:
            is_last = stopping.wait(EVERY_S)
            try:
                saved_version = self.save(saved_version)
            except (FilmletError, OSError, sqlite3.Error) as error:
                log.warning("the queue could not be copied: %s", error)
            if is_last:
                return

    def save(self, saved_version: str = "") -> str:
        """Back up if the jobs have changed since `saved_version`; return the new version."""
        part = partial_path(self.file)
        with closing(
            sqlite3.connect(f"file:{self.file}?mode=ro", uri=True, timeout=30)
        ) as connection:
            now = repr(connection.execute(STATE).fetchone())
            if now == saved_version:
                return now
            try:
                with closing(sqlite3.connect(part)) as copy:
                    connection.backup(copy)
                self.storage.upload(part, NAME)
            finally:
                part.unlink(missing_ok=True)
        return now
