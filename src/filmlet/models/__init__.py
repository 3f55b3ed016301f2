"""The catalogue: which models there are, how each is to be run, and whether its files are here."""

from filmlet.models import hub
from filmlet.models.catalogue import CARDS, find
from filmlet.models.disk import drop, size
from filmlet.models.fetch import Fetched, fetch, repository
from filmlet.models.files import locate, parameters
from filmlet.models.words import Words, count, vocabulary

__all__ = [
    "CARDS", "Fetched", "Words", "count", "drop", "fetch", "find", "hub", "locate", "parameters",
    "repository", "size", "vocabulary",
]  # fmt: skip
