"""Limits of one user, checked when a job is queued."""

import math
from dataclasses import dataclass

from filmlet.errors import InvalidRequest, TooManyJobs, abbreviate
from filmlet.jobs.database import Transaction
from filmlet.settings import Settings

MAX_LIMIT = 10**9


@dataclass(frozen=True)
class Limits:
    """Limits of one user: unfinished jobs, jobs a minute, seconds of video a day (0: no limit)."""

    max_active: int
    max_per_minute: int
    seconds_per_day: float

    def check(self) -> None:
        """Raise InvalidRequest for a value outside 0 to MAX_LIMIT."""
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
        """Return the limits of the owner's key, or those of the settings if there is no key."""
        row = t.row(
            "select max_active, max_per_minute, seconds_per_day from filmlet_key where id = :owner",
            owner=owner,
        )
        return cls(**row) if row else cls.from_settings(settings)

    def check_admission(self, t: Transaction, owner: str, max_queued: int, seconds: float) -> int:
        """Return the number of the owner's unfinished jobs. Raises TooManyJobs over a limit.

        seconds: of video that is requested; 0 for a retry, which was counted before.
        """
        limits = {"max_queued": max_queued, **vars(self)}
        used = {}
        for rule in RULES:
            requested = seconds if rule.limit == "seconds_per_day" else 1
            used[rule.limit] = rule.check(t, owner, limits[rule.limit], requested)
        return int(used["max_active"])

    def check_rate(self, t: Transaction, owner: str, requested: int) -> None:
        """Check the limit of a minute for so many prompts. Raises TooManyJobs."""
        rule = next(rule for rule in RULES if rule.limit == "max_per_minute")
        rule.check(t, owner, self.max_per_minute, requested)


@dataclass(frozen=True)
class LimitRule:
    """The check of one limit.

    limit: field of Limits, or max_queued. query: gives `used` and `wait_s`, the seconds until more
    may be free. message: of the error. if_zero: what the limit 0 stands for.
    """

    limit: str
    query: str
    message: str
    if_zero: float = 0.0

    def check(self, t: Transaction, owner: str, limit: float, requested: float) -> float:
        """Return what the owner has used. Raises TooManyJobs where `requested` more is too much."""
        row = t.row(self.query, owner=owner)
        assert row
        used: float = row["used"]
        if used + requested > (limit or self.if_zero):
            wait_s = max(1.0, row["wait_s"])
            message = self.message.format(
                used=used, limit=limit, wait_s=wait_s, requested=requested
            )
            raise TooManyJobs(message, retry_after_s=wait_s)
        return used


RULES = (
    LimitRule(
        "max_queued",
        "select count(*) as used, 60 as wait_s from filmlet_job where status = 'queued'",
        "The queue is full ({limit} jobs); try again in a minute.",
    ),
    LimitRule(
        "max_active",
        "select count(*) as used, 30 as wait_s from filmlet_job"
        " where owner = :owner and status in ('queued', 'running')",
        "You have {used} unfinished jobs and may have {limit}; try again when one has ended.",
    ),
    LimitRule(
        "max_per_minute",
        "select count(*) as used, coalesce(min(at) + 60 - {now}, 60) as wait_s"
        " from filmlet_use where owner = :owner and at > {now} - 60",
        "You sent {used} clips and prompts within a minute, the limit is {limit}; "
        "try again in {wait_s:.0f} s.",
    ),
    LimitRule(
        "seconds_per_day",
        "select coalesce(sum(seconds), 0) as used,"
        " coalesce(min(at) + 86400 - {now}, 86400) as wait_s"
        " from filmlet_use where owner = :owner and at > {now} - 86400",
        "You requested {used:.0f} seconds of video within a day and may have {limit:g}; "
        "this clip has {requested:.1f}.",
        if_zero=math.inf,
    ),
)


def record_usage(t: Transaction, owner: str, seconds: float) -> None:
    """Record a submission; it counts even if the job is deleted."""
    t.rows("insert into filmlet_use values (:owner, {now}, :seconds)", owner=owner, seconds=seconds)
