"""Consent to the download of a model, before any of it is fetched."""

import sys
from typing import TYPE_CHECKING

from filmlet.errors import ModelNotFetched

if TYPE_CHECKING:
    from filmlet.pipeline.plan import Plan
    from filmlet.settings import Settings

ASK_ABOVE_BYTES = 1_000_000_000


def confirm_download(plan: "Plan", settings: "Settings", *, agreed: bool) -> None:
    """Ask for a download of gigabytes at a terminal, once it is known to be of use.

    agreed: by an option. Raises ModelNotFetched without consent, and what `check_requirements` and
    `check_disk` raise.
    """
    from filmlet.models import hub_cache
    from filmlet.pipeline.requirements import check_disk, check_requirements, missing_bytes

    check_requirements(plan, settings)
    missing = missing_bytes(plan)
    if not missing or not settings.allow_download:
        return
    check_disk(plan)
    if agreed or missing <= ASK_ABOVE_BYTES:
        return
    size, place = f"{missing / 1e9:.1f} GB", hub_cache.cache()
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ModelNotFetched(
            f"{plan.card.name} is not on this machine: {size} would be downloaded to {place}. "
            "--yes agrees to that;",
            model=plan.request.model,
        )
    if not _ask(f"Download {size} to {place}?"):
        raise ModelNotFetched(
            f"{plan.card.name} is not on this machine, and nothing was downloaded.",
            model=plan.request.model,
        )


def _ask(question: str) -> bool:
    """Return whether a person at the terminal says yes; Enter is no."""
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
