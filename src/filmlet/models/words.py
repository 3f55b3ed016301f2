"""How a model will read a prompt, counted without torch: for a page that tells while typing."""

from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer

from filmlet.card import ModelCard
from filmlet.checkpoint_files import MAX_TOKENIZER_BYTES, read_bounded
from filmlet.errors import CheckpointDamaged
from filmlet.models import hub

WORDS_LISTED = 2000  # a vocabulary of words is small; one of word pieces knows every word
UNKNOWN = ("<unk>", "[UNK]")


@dataclass(frozen=True)
class Words:
    """tokens: that the prompt takes, of at most `most`; unknown: words with their nearest known."""

    tokens: int
    most: int
    unknown: dict[str, tuple[str, ...]]

    @property
    def is_cut(self) -> bool:
        return self.tokens > self.most


def count(card: ModelCard, prompt: str) -> Words | None:
    """Tokens and unknown words of a prompt; None while the model's tokenizer is not here."""
    file = _file(card)
    if file is None:
        return None
    tokenizer = _read(file)
    read = tokenizer.encode(prompt)
    nothing = next((i for i in map(tokenizer.token_to_id, UNKNOWN) if i is not None), None)
    spans = zip(read.ids, read.offsets, strict=True)
    unknown = [prompt[a:b] for token, (a, b) in spans if token == nothing and b > a]
    return Words(len(read.ids), card.max_tokens, {word: _near(file, word) for word in unknown})


def vocabulary(card: ModelCard) -> list[str]:
    """Every word that a model with a vocabulary of words knows, sorted; else nothing."""
    file = _file(card)
    return list(_known(file)) if file else []


def _file(card: ModelCard) -> Path | None:
    """The tokenizer that is read here; some models have theirs in another form only."""
    place = hub.place(card.sources.tokenizer)
    file = place / "tokenizer.json" if place else None
    return file if file and file.is_file() else None


@lru_cache(maxsize=8)
def _read(file: Path) -> Tokenizer:
    content = read_bounded(file, MAX_TOKENIZER_BYTES)
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointDamaged(f"{file} is no tokenizer: {str(error)[:300]}.") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


@lru_cache(maxsize=8)
def _known(file: Path) -> tuple[str, ...]:
    table = _read(file).get_vocab()
    if len(table) > WORDS_LISTED:
        return ()
    return tuple(sorted(word for word in table if word.isalnum()))


def _near(file: Path, word: str) -> tuple[str, ...]:
    return tuple(get_close_matches(word.lower(), _known(file), n=2, cutoff=0.6))
