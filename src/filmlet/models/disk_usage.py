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

    Returns the bytes that this freed. Files that lie elsewhere are somebody's own, and stay.
    """
    others = [other for other in REGISTRY.values() if other != card and local_files(other)]
    needed = {source for other in others for _, source in other.sources.present()}
    mine = {source for _, source in card.sources.present()} - needed
    places = [
        path for source in mine if _is_cached(source) and (path := hub_cache.local_path(source))
    ]
    return sum(
        hub_cache.delete_file(file)
        for path in places
        if path.exists()
        for file in hub_cache.files(path)
    )


def _is_cached(source: ComponentSource) -> bool:
    return source.root is None or hub_cache.cache() in source.root.parents
