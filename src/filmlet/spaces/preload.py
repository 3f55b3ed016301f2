"""Which weights the platform puts into a Space's cache before it starts."""

from filmlet.core.model_card import ModelCard
from filmlet.models.download_process import listed

GIGABYTES_A_MINUTE = 3.0  # that the platform fetches, a careful guess


def preload(card: ModelCard) -> list[str]:
    """The card's files as `preload_from_hub` takes them: `repo file,file commit`.

    A bundled model's come with the package. Raises HubUnreachable, HubRefused, CheckpointMissing.
    """
    wanted: dict[tuple[str, str], list[str]] = {}
    for source in dict.fromkeys(source for _, source in card.sources.there()):
        if source.repo:
            wanted.setdefault((source.repo, source.revision), []).extend(listed(source))
    return [
        " ".join((repo, ",".join(dict.fromkeys(files)), revision))
        for (repo, revision), files in wanted.items()
    ]


def minutes(card: ModelCard) -> int:
    """How long the platform should wait for a start: at least half an hour."""
    return max(30, round(card.bytes / 1e9 / GIGABYTES_A_MINUTE) + 20)
