"""Emoji of a prompt are read as words where a tokenizer has these and no token for the emoji."""

import pytest

from filmlet.core.events import drain
from filmlet.core.request import build_request
from filmlet.models import REGISTRY, check_prompt, list_vocabulary
from filmlet.models.registry import POCKET
from filmlet.models.tokenizer import get_tokenizer, replace_emoji, tokenize
from filmlet.pipeline.plan import make_plan
from filmlet.pipeline.prepare import prepare
from filmlet.settings import Settings
from recipe.renderer import EMOJI

TOKENIZER = get_tokenizer(POCKET / "tokenizer")
WORDS = list_vocabulary(REGISTRY["pocket"])


@pytest.mark.parametrize(("subject", "emoji"), sorted(EMOJI.items()))
def test_each_emoji_that_pocket_draws_is_read_as_its_subject(subject: str, emoji: str) -> None:
    text, _ = replace_emoji(TOKENIZER, emoji)
    assert text.split()[-1] == (subject if subject in WORDS else emoji)


@pytest.mark.parametrize(
    ("prompt", "read", "unknown"),
    [
        ("🐱 moving left", "cat moving left", ()),
        ("a 🐱🐶, on white", "a cat dog, on white", ()),
        ("🚀rising at night", "rocket rising at night", ()),
        ("a ❤️ and a 🔴", "a red heart and a red circle", ()),
        ("🐱🏽", "cat", ()),
        ("a 🦓 on grass", "a 🦓 on grass", ("🦓",)),
        ("a 🌭 on white", "a 🌭 on white", ("🌭",)),
        ("€ → 🇩🇪", "€ → 🇩🇪", ("€", "→", "🇩🇪")),
        ("a cat moving left", "a cat moving left", ()),
    ],
)
def test_known_emoji_become_words_and_others_are_unknown(
    prompt: str, read: str, unknown: tuple[str, ...]
) -> None:
    tokenized = tokenize(TOKENIZER, prompt, 128)
    assert (tokenized.text, tokenized.unknown_words) == (read, unknown)
    words = tokenize(TOKENIZER, read, 128)
    assert (tokenized.ids == words.ids).all()
    check = check_prompt(REGISTRY["pocket"], prompt)
    assert check
    assert (check.tokens, tuple(check.unknown)) == (words.token_count, unknown)


def test_clip_says_which_emoji_were_read_as_words() -> None:
    clip = drain(prepare(make_plan(build_request("🐱 moving left")), Settings(device="cpu")))
    assert clip.effective.prompt == "cat moving left"
    assert clip.effective.unknown_words == ()
    (change,) = clip.effective.changes
    assert (change.field, change.requested) == ("prompt", "🐱 moving left")
    assert "🐱 as 'cat'" in change.reason
