"""Which weights the platform puts into a Space's cache before it starts."""

from collections.abc import Iterable
from dataclasses import dataclass

from filmlet.card import ModelCard

GIGABYTES_A_MINUTE = 3.0  # that the platform fetches, a careful guess


@dataclass(frozen=True)
class Source:
    """Files of a repository at the Hub, at one commit."""

    repo: str
    revision: str
    files: tuple[str, ...] = ()


def preload(card: ModelCard) -> list[str]:
    """The card's files as `preload_from_hub` takes them: `repo file,file commit`."""
    return lines(sources(card))


def sources(card: ModelCard) -> list[Source]:
    """Where the card's files come from; a bundled model's come with the package."""
    if card.folder is not None:
        return []
    known: dict[str, Source] = getattr(card, "sources", {})
    return list(known.values())


def lines(sources: Iterable[Source]) -> list[str]:
    """One line for all that is wanted of one repository at one commit."""
    wanted: dict[tuple[str, str], list[str]] = {}
    for source in sources:
        wanted.setdefault((source.repo, source.revision), []).extend(source.files)
    return [
        " ".join((repo, ",".join(dict.fromkeys(files)), revision))
        for (repo, revision), files in wanted.items()
    ]


def minutes(card: ModelCard) -> int:
    """How long the platform should wait for a start: at least half an hour."""
    return max(30, round((card.bytes or 0) / 1e9 / GIGABYTES_A_MINUTE) + 20)
