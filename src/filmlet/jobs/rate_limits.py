"""How much one user may ask for, and the refusal of more."""

from dataclasses import dataclass

from filmlet.errors import InvalidRequest, TooManyJobs, abbreviate
from filmlet.jobs.database import Transaction
from filmlet.settings import Settings

MAX_LIMIT = 10**9


@dataclass(frozen=True)
class Limits:
    """Of one user: unfinished jobs, jobs a minute, seconds of video a day (0 is any number)."""

    max_active: int
    max_per_minute: int
    seconds_per_day: float

    def check(self) -> None:
        """Raises InvalidRequest for what no limit can be, or no database can hold."""
        for name, value in vars(self).items():
            if not 0 <= value <= MAX_LIMIT:
                raise InvalidRequest(
                    f"{name} must be 0 to {MAX_LIMIT}, got {abbreviate(value)}.", param=name
                )

    @classmethod
    def from_settings(cls, settings: Settings) -> "Limits":
        return cls(settings.max_active, settings.max_per_minute, settings.seconds_per_day)

    @classmethod
    def for_owner(cls, t: Transaction, owner: str, settings: Settings) -> "Limits":
        """Of the owner's key; the settings' where there is none."""
        row = t.row(
            "select max_active, max_per_minute, seconds_per_day from filmlet_key where id = :owner",
            owner=owner,
        )
        return cls(**row) if row else cls.from_settings(settings)

    def check_admission(self, t: Transaction, owner: str, max_queued: int, seconds: float) -> int:
        """How many unfinished jobs the user has. Raises TooManyJobs if one more is too many.

        seconds: of video that is asked for; 0 for what was counted before.
        """
        jobs = t.row(
            "select count(*) filter (where status = 'queued') as queued,"
            " count(*) filter (where owner = :owner) as active"
            " from filmlet_job where status in ('queued', 'running')",
            owner=owner,
        )
        use = t.row(
            "select count(*) filter (where at > {now} - 60) as recent,"
            " min(case when at > {now} - 60 then at end) as oldest, min(at) as first,"
            " coalesce(sum(seconds), 0) as seconds, {now} as now"
            " from filmlet_use where owner = :owner and at > {now} - 86400",
            owner=owner,
        )
        assert jobs
        assert use
        if jobs["queued"] >= max_queued:
            raise TooManyJobs(
                f"The queue is full ({max_queued} jobs); try again in a minute.", retry_after_s=60
            )
        if jobs["active"] >= self.max_active:
            raise TooManyJobs(
                f"You have {jobs['active']} unfinished jobs and may have {self.max_active}; "
                "try again when one is over.",
                retry_after_s=30,
            )
        if use["recent"] >= self.max_per_minute:
            wait = max(1.0, use["oldest"] + 60 - use["now"])
            raise TooManyJobs(
                f"You submitted {use['recent']} jobs within a minute, the limit is "
                f"{self.max_per_minute}; try again in {wait:.0f} s.",
                retry_after_s=wait,
            )
        if self.seconds_per_day and use["seconds"] + seconds > self.seconds_per_day:
            wait = max(1.0, (use["first"] or use["now"]) + 86400 - use["now"])
            raise TooManyJobs(
                f"You asked for {use['seconds']:.0f} seconds of video within a day and may have "
                f"{self.seconds_per_day:g}; this clip has {seconds:.1f}.",
                retry_after_s=wait,
            )
        return int(jobs["active"])


def record_usage(t: Transaction, owner: str, seconds: float) -> None:
    """Remember what was asked for; a deleted job counts on."""
    t.rows("insert into filmlet_use values (:owner, {now}, :seconds)", owner=owner, seconds=seconds)
