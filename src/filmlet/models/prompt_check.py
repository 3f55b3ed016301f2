"""Check of a prompt against a model's tokenizer, without torch: for a page, while one types."""

from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path

from filmlet.core.model_card import ModelCard
from filmlet.models import hub_cache
from filmlet.models.tokenizer import get_tokenizer, replace_emoji, unknown_spans

WORDS_LISTED = 2000  # a vocabulary of words is small; one of word pieces knows every word
MAX_CHARS = 32_000  # of a prompt that are read: far more than a model reads
MAX_UNKNOWN = 20  # words that are listed
MAX_UNKNOWN_CHARS = 40  # of each; no longer word is near a known one
MIN_WORD_SIMILARITY = 0.75  # of 1: a typing error is above it, another word mostly below


@dataclass(frozen=True)
class PromptCheck:
    """Tokens and unknown words of a prompt.

    tokens: that it takes, of at most `max_tokens`; unknown: the first such words, each with the
    nearest known ones.
    """

    tokens: int
    max_tokens: int
    unknown: dict[str, tuple[str, ...]]

    @property
    def is_cut(self) -> bool:
        return self.tokens > self.max_tokens


def check_prompt(card: ModelCard, prompt: str) -> PromptCheck | None:
    """Return tokens and unknown words of a prompt; None while the model's tokenizer is not here.

    Takes some milliseconds at most, whatever is in the prompt: an event loop may call it.
    """
    folder = _tokenizer_folder(card)
    if folder is None:
        return None
    tokenizer = get_tokenizer(folder)
    text = prompt[:MAX_CHARS].encode(errors="replace").decode()  # no half of a surrogate
    text, _ = replace_emoji(tokenizer, text)
    encoding = tokenizer.reader.encode(text)
    unknown: dict[str, tuple[str, ...]] = {}
    for start, end in unknown_spans(tokenizer, encoding, text):
        word = text[start : min(end, start + MAX_UNKNOWN_CHARS)]
        unknown[word] = unknown.get(word) or _suggestions(folder, word)
        if len(unknown) == MAX_UNKNOWN:
            break
    tokens = len(tokenizer.missing_start(encoding)) + len(encoding.ids)
    return PromptCheck(tokens, card.max_prompt_tokens, unknown)


def list_vocabulary(card: ModelCard) -> list[str]:
    """Return every word that a model with a vocabulary of words knows, sorted; else nothing."""
    folder = _tokenizer_folder(card)
    return list(_vocabulary(folder)) if folder else []


def _tokenizer_folder(card: ModelCard) -> Path | None:
    """The tokenizer that is read here; some models have theirs in another form only."""
    place = hub_cache.local_path(card.sources.tokenizer)
    if place and place.suffix == ".safetensors":
        return place if place.is_file() else None
    return place if place and (place / "tokenizer.json").is_file() else None


@lru_cache(maxsize=8)
def _vocabulary(folder: Path) -> tuple[str, ...]:
    table = get_tokenizer(folder).reader.get_vocab()
    if len(table) > WORDS_LISTED:
        return ()
    return tuple(sorted(word for word in table if word.isalnum()))


@lru_cache(maxsize=1024)
def _suggestions(folder: Path, word: str) -> tuple[str, ...]:
    return tuple(
        get_close_matches(word.lower(), _vocabulary(folder), n=2, cutoff=MIN_WORD_SIMILARITY)
    )
