"""Variations: clips of one request that differ by their seeds, queued by one press."""

from collections.abc import Callable
from dataclasses import dataclass

from filmlet.core.request import MAX_SEED, next_seeds
from filmlet.errors import FilmletError
from filmlet.jobs import Job

VARIATIONS = 4


@dataclass(frozen=True)
class Submission:
    """The jobs that were queued by one press, and why they are fewer than `requested`, if so."""

    jobs: tuple[Job, ...]
    requested: int
    refusal: FilmletError | None = None


def variation_seeds(seed: str, count: int) -> list[str]:
    """Return the seeds of variations: the given one and those after it, "" where all are random.

    What is no seed is returned as it is, for the check of the request to refuse.
    """
    text = seed.strip()
    is_number = text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_SEED))
    if not is_number or int(text) > MAX_SEED:
        return [text] * count
    return [str(number) for number in next_seeds(int(text), count)]


def submit_variations(submit: Callable[[str], Job], seed: str, count: int) -> Submission:
    """Queue a clip for each seed, as many as may be queued.

    submit: queues the clip of a seed. Raises what it raises for the first.
    """
    jobs: list[Job] = []
    for each in variation_seeds(seed, count):
        try:
            jobs.append(submit(each))
        except FilmletError as error:
            if not jobs:
                raise
            return Submission(tuple(jobs), count, error)
    return Submission(tuple(jobs), count)
