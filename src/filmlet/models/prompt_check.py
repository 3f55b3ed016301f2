"""How a model will read a prompt, counted without torch: for a page that tells while typing."""

from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer

from filmlet.core.checkpoint_headers import MAX_TOKENIZER_BYTES, read_bounded
from filmlet.core.model_card import ModelCard
from filmlet.errors import CheckpointCorrupt
from filmlet.models import hub_cache

WORDS_LISTED = 2000  # a vocabulary of words is small; one of word pieces knows every word
UNKNOWN = ("<unk>", "[UNK]")
MAX_CHARS = 32_000  # of a prompt that are read: far more than a model reads
MAX_UNKNOWN = 20  # words that are listed
MAX_UNKNOWN_CHARS = 40  # of each; no longer word is near a known one


@dataclass(frozen=True)
class PromptCheck:
    """How a model reads a prompt.

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
    """Tokens and unknown words of a prompt; None while the model's tokenizer is not here.

    Takes some milliseconds at most, whatever is in the prompt: an event loop may call it.
    """
    file = _tokenizer_file(card)
    if file is None:
        return None
    tokenizer = _load_tokenizer(file)
    text = prompt[:MAX_CHARS].encode(errors="replace").decode()  # no half of a surrogate
    read = tokenizer.encode(text)
    nothing = next((i for i in map(tokenizer.token_to_id, UNKNOWN) if i is not None), None)
    unknown: dict[str, tuple[str, ...]] = {}
    for token, (start, end) in zip(read.ids, read.offsets, strict=True):
        if token == nothing and end > start:
            word = text[start : min(end, start + MAX_UNKNOWN_CHARS)]
            unknown[word] = unknown.get(word) or _suggestions(file, word)
            if len(unknown) == MAX_UNKNOWN:
                break
    return PromptCheck(len(read.ids), card.max_tokens, unknown)


def list_vocabulary(card: ModelCard) -> list[str]:
    """Every word that a model with a vocabulary of words knows, sorted; else nothing."""
    file = _tokenizer_file(card)
    return list(_vocabulary(file)) if file else []


def _tokenizer_file(card: ModelCard) -> Path | None:
    """The tokenizer that is read here; some models have theirs in another form only."""
    folder = hub_cache.local_path(card.sources.tokenizer)
    file = folder / "tokenizer.json" if folder else None
    return file if file and file.is_file() else None


@lru_cache(maxsize=8)
def _load_tokenizer(file: Path) -> Tokenizer:
    content = read_bounded(file, MAX_TOKENIZER_BYTES)
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointCorrupt(f"{file} is no tokenizer: {str(error)[:300]}.") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


@lru_cache(maxsize=8)
def _vocabulary(file: Path) -> tuple[str, ...]:
    table = _load_tokenizer(file).get_vocab()
    if len(table) > WORDS_LISTED:
        return ()
    return tuple(sorted(word for word in table if word.isalnum()))


@lru_cache(maxsize=1024)
def _suggestions(file: Path, word: str) -> tuple[str, ...]:
    return tuple(get_close_matches(word.lower(), _vocabulary(file), n=2, cutoff=0.6))
