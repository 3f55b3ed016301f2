"""Weights that the platform puts into a Space's cache before it starts."""

from filmlet.core.model_card import ModelCard
from filmlet.models.download_process import list_files

GIGABYTES_A_MINUTE = 3.0  # that the platform fetches, a careful guess


def preload(card: ModelCard) -> list[str]:
    """Return the card's files as `preload_from_hub` takes them: `repo file,file commit`.

    A bundled model's come with the package. Raises HubUnreachable, HubAccessDenied,
    CheckpointNotFound.
    """
    files_by_repo: dict[tuple[str, str], list[str]] = {}
    for source in dict.fromkeys(source for _, source in card.sources.present()):
        if source.repo:
            files_by_repo.setdefault((source.repo, source.revision), []).extend(list_files(source))
    return [
        " ".join((repo, ",".join(dict.fromkeys(files)), revision))
        for (repo, revision), files in files_by_repo.items()
    ]


def startup_timeout_minutes(card: ModelCard) -> int:
    """Return how long the platform should wait for a start: at least half an hour."""
    return max(30, round(card.size_bytes / 1e9 / GIGABYTES_A_MINUTE) + 20)
