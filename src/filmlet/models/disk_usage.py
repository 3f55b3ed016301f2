"""Disk space of downloaded models, and its release."""

from filmlet.core.model_card import ComponentSource, ModelCard
from filmlet.models import hub_cache
from filmlet.models.checkpoint_files import local_files
from filmlet.models.registry import REGISTRY


def disk_usage(card: ModelCard) -> int:
    """Return bytes of a card's files that are on this machine, shared ones as well."""
    places = {hub_cache.local_path(source) for _, source in card.sources.present()}
    files = {file for path in places if path and path.exists() for file in hub_cache.files(path)}
    return sum(file.stat().st_size for file in files)


def delete_model(card: ModelCard) -> int:
    """Delete a card's files from the Hub's cache, but those that another model here needs.

    A model of the very same files goes with it: another recipe for them is no reason to keep them.
    Returns the bytes that this freed. Files that lie elsewhere are somebody's own, and stay.
    """
    own = _sources(card)
    others = (_sources(other) for other in REGISTRY.values() if local_files(other))
    mine = own.difference(*(sources for sources in others if sources != own))
    places = [
        path for source in mine if _is_cached(source) and (path := hub_cache.local_path(source))
    ]
    return sum(
        hub_cache.delete_file(file)
        for path in places
        if path.exists()
        for file in hub_cache.files(path)
    )


def _sources(card: ModelCard) -> frozenset[ComponentSource]:
    return frozenset(source for _, source in card.sources.present())


def _is_cached(source: ComponentSource) -> bool:
    return source.root is None or hub_cache.cache() in source.root.parents
