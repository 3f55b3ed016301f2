"""What of a prompt a model cannot read is named, words and symbols alike."""

import pytest

from filmlet.models import REGISTRY, check_prompt
from filmlet.models.registry import POCKET
from filmlet.models.tokenizer import get_tokenizer, tokenize

UNKNOWN = {
    "🐱": (),
    "🧿": ("🧿",),
    "a cat🐱🐶 by a gnu ☃️": ("by", "gnu"),
    "👨\u200d👩\u200d👧 👍🏽 🇫🇷🇩🇪": ("👨\u200d👩\u200d👧", "👍🏽", "🇫🇷", "🇩🇪"),
    "a cat → a dog": ("→",),
    '#cat, a (red) "cat"... !?': (),
    "你好 cat": ("你好",),
    "\u200d\ufe0f": (),
}


@pytest.mark.parametrize("prompt", UNKNOWN)
def test_words_and_symbols_that_a_model_does_not_know_are_named(prompt: str) -> None:
    tokenized = tokenize(get_tokenizer(POCKET / "tokenizer"), prompt, 128)
    assert tokenized.unknown_words == UNKNOWN[prompt]
    read = check_prompt(REGISTRY["pocket"], prompt)
    assert read
    assert tuple(read.unknown) == UNKNOWN[prompt]
