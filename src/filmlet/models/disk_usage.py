"""What models take on this disk, and making room again."""

from filmlet.core.model_card import ModelCard, Source
from filmlet.models import hub_cache
from filmlet.models.checkpoint_files import locate
from filmlet.models.registry import CARDS


def size(card: ModelCard) -> int:
    """Bytes of a card's files that are on this machine, shared ones as well."""
    places = {hub_cache.place(source) for _, source in card.sources.there()}
    there = {
        file for place in places if place and place.exists() for file in hub_cache.files(place)
    }
    return sum(file.stat().st_size for file in there)


def drop(card: ModelCard) -> int:
    """Delete a card's files from the Hub's cache, but those that another model here needs.

    Returns the bytes that this freed. Files that lie elsewhere are somebody's own, and stay.
    """
    others = [other for other in CARDS.values() if other != card and locate(other)]
    needed = {source for other in others for _, source in other.sources.there()}
    mine = {source for _, source in card.sources.there()} - needed
    places = [place for source in mine if _is_cached(source) and (place := hub_cache.place(source))]
    return sum(
        hub_cache.drop(file)
        for place in places
        if place.exists()
        for file in hub_cache.files(place)
    )


def _is_cached(source: Source) -> bool:
    return source.root is None or hub_cache.cache() in source.root.parents
