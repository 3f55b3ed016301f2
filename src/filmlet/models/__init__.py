"""The catalogue: which models there are, how each is to be run, and whether its files are whole."""

from filmlet.models.catalogue import CARDS, find
from filmlet.models.folder import check
from filmlet.models.loras import read_loras
from filmlet.models.words import Words, count, vocabulary

__all__ = ["CARDS", "Words", "check", "count", "find", "read_loras", "vocabulary"]
