"""Tokenizers: token ids of a prompt, and what of the prompt the model cannot read."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any
from unicodedata import category

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding
from tokenizers import Tokenizer as Reader

from filmlet.core.checkpoint_headers import (
    MAX_JSON_BYTES,
    MAX_TOKENIZER_BYTES,
    parse_object,
    read_bounded,
    read_header,
    read_json,
    read_tensor_bytes,
)
from filmlet.errors import CheckpointCorrupt, MissingDependency
from filmlet.models.emoji import emoji_words

ASSET = "hf_asset__"  # begins the names of further files that are tensors
SYMBOLS = ("So", "Sm", "Sc")  # categories of Unicode: emoji, arrows, currencies
JOINERS = ("Cf", "Me", "Mn", "Sk")  # what makes one sign of several: skin colours, variants
MAX_EMOJI = 500  # of a prompt that are read as words: more than a model has tokens for
ZERO_WIDTH_JOINER = "\u200d"


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """How a model reads. padding, unknown, start: ids of these tokens.

    start: what a text begins with, whether or not the reader puts it there itself.
    """

    reader: Reader
    padding: int
    unknown: int | None
    start: int | None = None

    def missing_start(self, encoding: Encoding) -> list[int]:
        """The token that a text begins with, where the reader has not put it there."""
        if self.start is None or encoding.ids[:1] == [self.start]:
            return []
        return [self.start]


@dataclass(frozen=True, eq=False)
class TokenizedPrompt:
    """A prompt as the model reads it.

    ids: (1, max_tokens) padded; token_count: how many of them are text; truncated_text: the end of
    the prompt that did not fit; unknown_words: words the tokenizer has no token for; emoji: those
    that are read as words, and these.
    """

    ids: NDArray[np.int64]
    token_count: int
    text: str
    truncated_text: str
    unknown_words: tuple[str, ...]
    emoji: dict[str, str] = field(default_factory=dict)


@lru_cache(maxsize=8)
def get_tokenizer(place: Path) -> Tokenizer:
    """Return the tokenizer in a folder or file, read once. Raises what `load_tokenizer` raises."""
    return load_tokenizer(place)


def load_tokenizer(place: Path) -> Tokenizer:
    """The tokenizer in a folder, or among a file's tensors.

    Raises CheckpointCorrupt; MissingDependency for old files.
    """
    if place.suffix.lower() == ".safetensors":
        reader, names = _load_embedded_tokenizer(place)
    else:
        file = place / "tokenizer.json"
        names = read_json(place / "tokenizer_config.json")
        is_fast = os.path.lexists(file)
        reader = _load_fast_tokenizer(file) if is_fast else _convert_sentencepiece(place)
    reader.no_padding()
    reader.no_truncation()
    padding, unknown, start = (
        _token_id(place, reader, names.get(f"{kind}_token")) for kind in ("pad", "unk", "bos")
    )
    return Tokenizer(reader, padding or 0, unknown, start)


def _load_embedded_tokenizer(file: Path) -> tuple[Reader, dict[str, Any]]:
    """Of a text encoder's file, which has tokenizer.json as a tensor of bytes."""
    header = read_header(file)
    name, config_name = "tokenizer_json", "tokenizer_config.json"
    reader = _parse_tokenizer(file, read_tensor_bytes(file, header, name, MAX_TOKENIZER_BYTES))
    if f"{ASSET}{config_name}" in header.tensors:
        config = read_tensor_bytes(file, header, f"{ASSET}{config_name}", MAX_JSON_BYTES)
    else:
        config = header.metadata.get(config_name, "{}").encode()
    try:
        return reader, parse_object(config)
    except ValueError as error:
        raise CheckpointCorrupt(f"{file}: its {config_name} is no JSON: {error}.") from error


def _load_fast_tokenizer(file: Path) -> Reader:
    return _parse_tokenizer(file, read_bounded(file, MAX_TOKENIZER_BYTES))


def _parse_tokenizer(file: Path, content: bytes) -> Reader:
    try:
        return Reader.from_buffer(content)
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointCorrupt(f"{file} is no tokenizer: {str(error)[:300]}.") from error


def _convert_sentencepiece(folder: Path) -> Reader:
    """Return the tokenizer of sentencepiece's files, which transformers reads."""
    try:
        from transformers import AutoTokenizer  # noqa: PLC0415 - it may be missing
    except ImportError as error:
        raise MissingDependency(
            "This model's tokenizer takes transformers: pip install 'filmlet[torch]'"
        ) from error
    for file in folder.glob("*.*"):
        if not file.is_dir():
            read_bounded(file, MAX_TOKENIZER_BYTES)  # the library would wait for a pipe
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        reader: Reader = tokenizer.backend_tokenizer
    except Exception as error:  # anything, by what the files say
        raise CheckpointCorrupt(f"{folder} holds no tokenizer: {str(error)[:300]}.") from error
    return reader


def _token_id(folder: Path, reader: Reader, token: object) -> int | None:
    text = token.get("content") if isinstance(token, dict) else token
    if text is None:
        return None
    if not isinstance(text, str):
        raise CheckpointCorrupt(f"{folder}: {str(token)[:60]!r} is no token.")
    return reader.token_to_id(text)


def unknown_spans(tokenizer: Tokenizer, encoding: Encoding, text: str) -> Iterator[tuple[int, int]]:
    """Yield where the text has words and symbols, such as emoji, that the tokenizer has no token
    for: start and end.
    """
    read = 0
    for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
        if end <= start:  # an added token
            continue
        yield from _symbol_spans(text, read, start)
        if token == tokenizer.unknown:
            yield start, end
        read = max(read, end)
    yield from _symbol_spans(text, read, len(text))


def _symbol_spans(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield each symbol of a part that has no token, with what joins it; no punctuation."""
    begin: int | None = None
    for place in range(start, end):
        kind = category(text[place])
        is_joined = begin is not None and (
            kind in JOINERS
            or text[place - 1] == ZERO_WIDTH_JOINER
            or _is_flag(text[begin : place + 1])
        )
        if is_joined:
            continue
        if begin is not None:
            yield begin, place
        begin = place if kind in SYMBOLS else None
    if begin is not None:
        yield begin, end


def _is_flag(text: str) -> bool:
    """Return whether it is two letters that stand for a flag."""
    return len(text) == 2 and all("\U0001f1e6" <= letter <= "\U0001f1ff" for letter in text)


def replace_emoji(tokenizer: Tokenizer, text: str) -> tuple[str, dict[str, str]]:
    """Return a text with words for the emoji that have no token, and which words these are.

    An emoji whose words have no tokens either stays.
    """
    if not any(category(letter) == "So" for letter in text):
        return text, {}
    spans = unknown_spans(tokenizer, tokenizer.reader.encode(text), text)
    signs = (sign for span in spans for sign in _symbol_spans(text, *span))
    known: dict[str, str] = {}
    readable, read = "", 0
    for start, end in islice(signs, MAX_EMOJI):
        sign = text[start:end]
        if sign not in known:
            known[sign] = _known_words(tokenizer, sign)
        if start < read or not known[sign]:
            continue
        readable += text[read:start]
        before = " " if readable and not readable[-1].isspace() else ""
        after = " " if text[end : end + 1].isalnum() else ""
        readable, read = f"{readable}{before}{known[sign]}{after}", end
    return readable + text[read:], {sign: words for sign, words in known.items() if words}


def _known_words(tokenizer: Tokenizer, sign: str) -> str:
    """Return the first name of an emoji that the tokenizer has tokens for, or nothing."""
    for words in emoji_words(sign):
        if not any(unknown_spans(tokenizer, tokenizer.reader.encode(words), words)):
            return words
    return ""


def tokenize(tokenizer: Tokenizer, prompt: str, max_tokens: int) -> TokenizedPrompt:
    """Tokenize, pad to `max_tokens`, and notice what is cut off or unknown.

    Emoji without a token are read as their words.
    """
    prompt, emoji = replace_emoji(tokenizer, prompt)
    encoding = tokenizer.reader.encode(prompt)
    start, cut = tokenizer.missing_start(encoding), ""
    ids = [*start, *encoding.ids]
    if len(ids) > max_tokens:
        # The last place belongs to the end-of-text token, of readers that put one there.
        end = ids[-1:] if encoding.special_tokens_mask[-1] else []
        kept = max_tokens - len(end)
        cut = prompt[encoding.offsets[kept - len(start)][0] :]
        ids = [*ids[:kept], *end]
    unknown = [prompt[start:end] for start, end in unknown_spans(tokenizer, encoding, prompt)]
    padded = [*ids, *[tokenizer.padding] * (max_tokens - len(ids))]
    return TokenizedPrompt(
        ids=np.array([padded], np.int64),
        token_count=len(ids),
        text=prompt.removesuffix(cut).rstrip() if cut else prompt,
        truncated_text=cut,
        unknown_words=tuple(dict.fromkeys(unknown)),
        emoji=emoji,
    )
