"""The catalogue: which models there are, how each is to be run, and whether its files are here."""

from filmlet.models import hub
from filmlet.models.catalogue import CARDS, find
from filmlet.models.disk import drop, size
from filmlet.models.fetch import Fetched, fetch, fetch_lora, repository
from filmlet.models.files import locate, parameters
from filmlet.models.loras import look_at_lora, look_at_loras
from filmlet.models.words import MAX_UNKNOWN, Words, count, vocabulary

__all__ = [
    "CARDS", "MAX_UNKNOWN", "Fetched", "Words", "count", "drop", "fetch", "fetch_lora", "find",
    "hub", "locate", "look_at_lora", "look_at_loras", "parameters", "repository", "size",
    "vocabulary",
]  # fmt: skip
