"""The catalogue: which models there are, how each is to be run, and whether its files are here."""

from filmlet.models import hub_cache
from filmlet.models.checkpoint_files import locate, parameters
from filmlet.models.disk_usage import drop, size
from filmlet.models.download import Fetched, fetch, fetch_lora, repository
from filmlet.models.lora_files import look_at_lora, look_at_loras
from filmlet.models.prompt_check import MAX_UNKNOWN, Words, count, vocabulary
from filmlet.models.registry import CARDS, find

__all__ = [
    "CARDS", "MAX_UNKNOWN", "Fetched", "Words", "count", "drop", "fetch", "fetch_lora", "find",
    "hub_cache", "locate", "look_at_lora", "look_at_loras", "parameters", "repository", "size",
    "vocabulary",
]  # fmt: skip
