"""From a prompt to token ids, and what of the prompt the model cannot read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from transformers import AutoTokenizer

from filmlet.errors import CheckpointDamaged


class Tokenizer(Protocol):
    """The part of transformers' fast tokenizers that is used here."""

    unk_token_id: int | None
    is_fast: bool

    def __call__(self, text: str, **options: object) -> dict[str, list[int]]: ...


@dataclass(frozen=True, eq=False)
class Reading:
    """A prompt as the model reads it.

    ids: (1, max_tokens) padded; tokens: how many of them are text; cut: the end of the prompt that
    did not fit; unknown: words the tokenizer has no token for.
    """

    ids: Tensor
    tokens: int
    text: str
    cut: str
    unknown: tuple[str, ...]


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in a folder; raises CheckpointDamaged."""
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise CheckpointDamaged(f"{folder} cannot be read: {error}.") from error


def read(tokenizer: Tokenizer, prompt: str, max_tokens: int) -> Reading:
    """Tokenize, pad to `max_tokens`, and notice what is cut off or unknown."""
    whole = tokenizer(prompt, return_offsets_mapping=True)
    padded = tokenizer(prompt, padding="max_length", max_length=max_tokens, truncation=True)
    spans: list[tuple[int, int]] = whole["offset_mapping"]  # type: ignore[assignment]
    cut = ""
    if len(whole["input_ids"]) > max_tokens:
        # The last place belongs to the end-of-text token.
        cut = prompt[spans[max_tokens - 1][0] :]
    unknown = [
        prompt[start:end]
        for token, (start, end) in zip(whole["input_ids"], spans, strict=True)
        if token == tokenizer.unk_token_id and end > start
    ]
    return Reading(
        ids=torch.tensor([padded["input_ids"]]),
        tokens=sum(padded["attention_mask"]),
        text=prompt.removesuffix(cut).rstrip() if cut else prompt,
        cut=cut,
        unknown=tuple(dict.fromkeys(unknown)),
    )
