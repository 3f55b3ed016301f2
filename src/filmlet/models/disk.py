"""What models take on this disk, and making room again."""

from filmlet.card import ModelCard, Source
from filmlet.models import hub
from filmlet.models.catalogue import CARDS
from filmlet.models.files import locate


def size(card: ModelCard) -> int:
    """Bytes of a card's files that are on this machine, shared ones as well."""
    places = {hub.place(source) for _, source in card.sources.there()}
    there = {file for place in places if place and place.exists() for file in hub.files(place)}
    return sum(file.stat().st_size for file in there)


def drop(card: ModelCard) -> int:
    """Delete a card's files from the Hub's cache, but those that another model here needs.

    Returns the bytes that this freed. Files that lie elsewhere are somebody's own, and stay.
    """
    others = [other for other in CARDS.values() if other != card and locate(other)]
    needed = {source for other in others for _, source in other.sources.there()}
    mine = {source for _, source in card.sources.there()} - needed
    places = [place for source in mine if _is_cached(source) and (place := hub.place(source))]
    return sum(hub.drop(file) for place in places if place.exists() for file in hub.files(place))


def _is_cached(source: Source) -> bool:
    return source.root is None or hub.cache() in source.root.parents
