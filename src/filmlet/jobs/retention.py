"""Automatic deletion: old jobs, jobs over the disk limit, files without a job."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from filmlet.core.events import Stage
from filmlet.errors import JobConflict, TooManyJobs, UnknownJob
from filmlet.jobs.cost_model import LATEST
from filmlet.jobs.database import Database, Row
from filmlet.jobs.job import EXPORT_FILES, PREVIEW, Status
from filmlet.jobs.serialization import request_from_row
from filmlet.jobs.storage import Storage
from filmlet.pipeline.artifacts import result_file
from filmlet.settings import Settings

log = logging.getLogger("filmlet.retention")

TRIM_AFTER_S = 600.0  # readers of a growing clip that are behind need it so long
TRIMS = 200  # jobs a sweep
ORPHAN_AFTER_S = 3600.0  # an upload, which comes before its job's row, takes less
ORPHANS_EVERY_S = 3600.0
OWNER_SHARE = 0.5  # of the disk limit, for files of one owner's unfinished jobs
# Of a draft, by which the job that refines it goes on
DRAFT_FILES = (result_file(Stage.ENCODE), result_file(Stage.DENOISE))


def files_to_keep(row: Row) -> set[str]:
    """Return the files of a completed job that are still needed.

    Inputs are needed by its remixes; embeddings and latents of a draft by the job that refines it;
    exports by whoever downloads them again.
    """
    request = request_from_row(row)
    draft = DRAFT_FILES if request.draft else ()
    return {result_file(Stage.MUX), PREVIEW, *EXPORT_FILES.values(), *request.files, *draft}


@dataclass(eq=False)
class Retention:
    """Deletes jobs and files of one database and its storage. delete: deletes an ended job."""

    database: Database
    storage: Storage
    settings: Settings
    delete: Callable[[str], None]
    orphans_at: float | None = None  # monotonic, of the last look for orphans

    def sweep(self) -> int:
        """Delete what exceeds the limits; return the number of deleted jobs.

        Raises DatabaseUnusable, StorageUnusable.
        """
        self._trim()
        gone = self._delete_excess()
        now = time.monotonic()
        if self.orphans_at is None or now - self.orphans_at > ORPHANS_EVERY_S:
            self.orphans_at = now
            self.delete_orphans()
        return gone

    def make_room(self, owner: str) -> None:
        """Make room for the files of a new job. Raises TooManyJobs if there is none."""
        allowed = self.settings.keep_gb * 1e9
        with self.database.read() as t:
            taken = t.row(
                "select coalesce(sum(bytes), 0) as in_all,"
                " coalesce(sum(case when finished is null then bytes end), 0) as waiting,"
                " coalesce(sum(case when finished is null and owner = :owner then bytes end), 0)"
                " as own from filmlet_job",
                owner=owner,
            )
        assert taken
        if taken["own"] > allowed * OWNER_SHARE or taken["waiting"] > allowed:
            raise TooManyJobs(
                "The files of unfinished jobs take all the disk space allowed for them; "
                "try again when one has ended.",
                retry_after_s=60,
            )
        if taken["in_all"] > allowed:
            self._delete_excess()

    def _trim(self) -> None:
        """Delete what only running jobs need, and record the bytes of ended jobs."""
        with self.database.read() as t:
            rows = t.rows(
                "select * from filmlet_job where trimmed = 0 and finished < {now} - :age"
                " and status in ('completed', 'failed', 'cancelled') order by finished"
                " limit :limit",
                age=TRIM_AFTER_S, limit=TRIMS,
            )  # fmt: skip
        for row in rows:
            if row["status"] == Status.COMPLETED:
                self.storage.trim(row["id"], files_to_keep(row))
            size = self.storage.size(row["id"])
            with self.database.transaction() as t:
                t.rows(
                    "update filmlet_job set trimmed = 1, bytes = :bytes"
                    " where id = :id and run = :run and status = :status",
                    bytes=size, id=row["id"], run=row["run"], status=row["status"],
                )  # fmt: skip

    def _delete_excess(self) -> int:
        """Delete expired jobs; over the disk limit, the oldest of the owner who takes most."""
        with self.database.transaction() as t:
            t.rows("delete from filmlet_use where at < {now} - 86400")
            t.rows(
                "delete from filmlet_cost where at < (select c.at from filmlet_cost c"
                " where c.model = filmlet_cost.model and c.device = filmlet_cost.device"
                " and c.stage = filmlet_cost.stage order by c.at desc limit 1 offset :latest)",
                latest=LATEST,
            )
        with self.database.read() as t:
            old = t.rows(
                "select id from filmlet_job where finished < {now} - :age order by finished",
                age=self.settings.keep_days * 86400,
            )
            rows = t.rows(
                "select id, owner, bytes, finished is null as is_open from filmlet_job"
                " where (select sum(bytes) from filmlet_job) > :allowed"
                " and (finished is null or finished >= {now} - :age)"
                " order by finished, id",
                allowed=self.settings.keep_gb * 1e9, age=self.settings.keep_days * 86400,
            )  # fmt: skip
        gone = 0
        for row in (*old, *self._choose_excess_jobs(rows)):
            try:
                self.delete(row["id"])
            except (UnknownJob, JobConflict):
                continue  # another sweep was here, or its owner retries it
            gone += 1
        return gone

    def _choose_excess_jobs(self, rows: list[Row]) -> Iterator[Row]:
        """Yield the jobs to delete until the rest is within the limit."""
        taken, allowed = Counter[str](), self.settings.keep_gb * 1e9
        ended: dict[str, list[Row]] = {}  # by owner, the newest first
        for row in rows:
            taken[row["owner"]] += row["bytes"]
            if not row["is_open"] and row["bytes"]:
                ended.setdefault(row["owner"], []).insert(0, row)
        while taken.total() > allowed and ended:
            owner = max(ended, key=lambda one: taken[one])
            row = ended[owner].pop()
            taken[owner] -= row["bytes"]
            if not ended[owner]:
                del ended[owner]
            yield row

    def delete_orphans(self) -> int:
        """Delete folders without a job, left by killed processes; return their number.

        Only in a storage that belongs to this database, and only what nobody has written to for
        an hour. Raises DatabaseUnusable, StorageUnusable.
        """
        if not self.storage.belongs_to(self.database.identity):
            log.warning("the storage belongs to another database: nothing is cleared there")
            return 0
        gone = 0
        for job in self._jobs_missing_in_database(self.storage.jobs()):
            if self.storage.idle_s(job) > ORPHAN_AFTER_S:
                self.storage.delete(job)
                gone += 1
        for job in self._jobs_missing_in_database(
            self.storage.working_copies(), "finished is null"
        ):
            if self.storage.idle_s(job) > ORPHAN_AFTER_S:
                self.storage.delete_working_copy(job)
        return gone

    def _jobs_missing_in_database(self, jobs: set[str], condition: str = "1 = 1") -> list[str]:
        """Return the jobs that the database does not have, or not in this condition."""
        with self.database.read() as t:
            rows = t.rows(f"select id from filmlet_job where {condition}")
        return sorted(jobs - {row["id"] for row in rows})
