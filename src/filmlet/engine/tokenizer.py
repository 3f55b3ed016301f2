"""From a prompt to token ids, and what of the prompt the model cannot read."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as Reader

from filmlet.core.checkpoint_headers import MAX_TOKENIZER_BYTES, read_bounded, read_json
from filmlet.errors import CheckpointDamaged, LibraryMissing


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """How a model reads. padding, unknown: ids of these tokens."""

    reader: Reader
    padding: int
    unknown: int | None


@dataclass(frozen=True, eq=False)
class Reading:
    """A prompt as the model reads it.

    ids: (1, max_tokens) padded; tokens: how many of them are text; cut: the end of the prompt that
    did not fit; unknown: words the tokenizer has no token for.
    """

    ids: NDArray[np.int64]
    tokens: int
    text: str
    cut: str
    unknown: tuple[str, ...]


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in a folder. Raises CheckpointDamaged; LibraryMissing for old files."""
    file = folder / "tokenizer.json"
    names = read_json(folder / "tokenizer_config.json")
    reader = _whole(file) if os.path.lexists(file) else _converted(folder)
    reader.no_padding()
    reader.no_truncation()
    padding, unknown = (_id(folder, reader, names.get(f"{kind}_token")) for kind in ("pad", "unk"))
    return Tokenizer(reader, padding or 0, unknown)


def _whole(file: Path) -> Reader:
    content = read_bounded(file, MAX_TOKENIZER_BYTES)
    try:
        return Reader.from_buffer(content)
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointDamaged(f"{file} is no tokenizer: {str(error)[:300]}.") from error


def _converted(folder: Path) -> Reader:
    """Of sentencepiece's files, which transformers reads."""
    try:
        from transformers import AutoTokenizer  # noqa: PLC0415 - it may be missing
    except ImportError as error:
        raise LibraryMissing(
            f"The tokenizer in {folder} takes transformers: pip install 'filmlet[torch]'"
        ) from error
    for file in folder.glob("*.*"):
        if not file.is_dir():
            read_bounded(file, MAX_TOKENIZER_BYTES)  # the library would wait for a pipe
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer
    except Exception as error:  # anything, by what the files say
        raise CheckpointDamaged(f"{folder} holds no tokenizer: {str(error)[:300]}.") from error


def _id(folder: Path, reader: Reader, token: object) -> int | None:
    text = token.get("content") if isinstance(token, dict) else token
    if text is None:
        return None
    if not isinstance(text, str):
        raise CheckpointDamaged(f"{folder}: {str(token)[:60]!r} is no token.")
    return reader.token_to_id(text)


def read(tokenizer: Tokenizer, prompt: str, max_tokens: int) -> Reading:
    """Tokenize, pad to `max_tokens`, and notice what is cut off or unknown."""
    whole = tokenizer.reader.encode(prompt)
    ids, cut = list(whole.ids), ""
    if len(ids) > max_tokens:
        # The last place belongs to the end-of-text token.
        cut = prompt[whole.offsets[max_tokens - 1][0] :]
        ids = [*ids[: max_tokens - 1], ids[-1]]
    unknown = [
        prompt[start:end]
        for token, (start, end) in zip(whole.ids, whole.offsets, strict=True)
        if token == tokenizer.unknown and end > start
    ]
    padded = [*ids, *[tokenizer.padding] * (max_tokens - len(ids))]
    return Reading(
        ids=np.array([padded], np.int64),
        tokens=len(ids),
        text=prompt.removesuffix(cut).rstrip() if cut else prompt,
        cut=cut,
        unknown=tuple(dict.fromkeys(unknown)),
    )
