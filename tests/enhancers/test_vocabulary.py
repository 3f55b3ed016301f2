"""Enhancement by rule: the nearest sentence in the words of pocket."""

import time
from itertools import islice

import pytest

import filmlet
from filmlet.core.request import ClipRequest, build_request
from filmlet.enhancers import enhance_request
from filmlet.enhancers.vocabulary import VocabularyEnhancer
from filmlet.errors import InvalidRequest
from filmlet.models import get_card, list_vocabulary
from filmlet.pipeline.plan import make_plan
from filmlet.settings import Settings
from recipe import prompts

WORDS = frozenset(list_vocabulary(get_card("pocket")))
ENHANCER = VocabularyEnhancer("pocket", WORDS)
SENTENCES = 2000


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("a kitty jumps quickly", "a kitty bouncing quickly"),
        ("A fluffy white cat runs through the garden", "a cat moving right on green grass"),
        ("🐱 flying over the city at night", "a cat moving right in a city at night"),
        ("🚀🌙", "a rocket and a moon"),
        ("two dogs dancing in the snow", "a dog bouncing in the snow"),
        ("a truc drivng to the left", "a truck moving left"),
        ("a dark castle at the beach", "a castle in the desert"),
        ("Ein roter Ball", "a ball"),
        ("a red ball on white", "a red ball on a white background"),
        ("the gigantic crimson orb ascends", "a huge red ball rising"),
        ("a star under the stars", "a star in a starry night"),
        ("at sunset, a panda shrinks", "a panda shrinking at sunset"),
    ],
)
def test_prompt_becomes_the_nearest_sentence(prompt: str, text: str) -> None:
    assert ENHANCER.enhance(prompt) == text
    assert ENHANCER.enhance(text) == text
    assert set(text.split()) <= WORDS


def test_sentences_of_the_training_keep_what_they_say() -> None:
    """The recipe knows the scenario of each sentence; words of it are still in the text."""
    examples = (e for e in prompts.examples(7) if set(e.prompt.replace(",", " ").split()) <= WORDS)
    for example in islice(examples, SENTENCES):
        text, scenario = ENHANCER.enhance(example.prompt), example.scenario
        assert set(text.split()) <= WORDS, text
        scenes = prompts.SCENE_WORDS[scenario.scene]
        if any(phrase in example.prompt for phrase in scenes):
            assert any(phrase in text for phrase in scenes), (example.prompt, text)
        for actor in scenario.actors:
            *colour, noun = actor.subject.split()
            names = (noun, *prompts.SYNONYMS.get(noun, ()))
            groups = [[" ".join([*colour, name]) for name in names]]
            groups += [prompts.MOTION_WORDS[actor.motion]] if actor.motion != "still" else []
            groups += [prompts.SIZE_WORDS[actor.size], prompts.SPEED_WORDS[actor.speed]]
            for phrases in groups:
                assert any(phrase in text for phrase in phrases), (example.prompt, text)


@pytest.mark.parametrize("prompt", ["президент", "...", "qqqq zzzz", "北京"])
def test_prompt_without_a_known_word_is_refused(prompt: str) -> None:
    with pytest.raises(InvalidRequest, match="pocket knows no word") as refused:
        filmlet.enhance_prompt(prompt)
    assert refused.value.code == "invalid_prompt"


@pytest.mark.parametrize("prompt", ["", " \n", "x" * 4001, "a\0b", "\ud800", 7])
def test_odd_prompt_is_refused(prompt: str) -> None:
    with pytest.raises(InvalidRequest):
        filmlet.enhance_prompt(prompt)


def test_hostile_prompt_takes_no_time() -> None:
    for prompt in ("abcdefgh " * 400, "a" * 4000, "🐱" * 4000, "ab," * 1300):
        started = time.process_time()
        assert ENHANCER.enhance(f"cat {prompt}").startswith("a cat")
        assert time.process_time() - started < 2


def test_word_that_the_model_lacks_is_never_written() -> None:
    small = VocabularyEnhancer("small", frozenset({"red", "cat", "left"}))
    assert small.enhance("a big red cat moving left at sunset") == "red cat"


def test_python_returns_what_was_asked_and_what_is_used() -> None:
    enhanced = filmlet.enhance_prompt("a kitty jumps")
    assert enhanced == filmlet.EnhancedPrompt(
        "a kitty jumps", "a kitty bouncing", "the vocabulary of pocket"
    )
    with pytest.raises(InvalidRequest, match="There is no model"):
        filmlet.enhance_prompt("a kitty", model="no-such-model")


def test_enhanced_prompt_is_a_change_of_the_plan() -> None:
    request = build_request("a kitty jumps", extra_prompts=["a puppy hops"])
    enhanced = enhance_request(request, Settings())
    assert enhanced.prompt == "a kitty jumps"
    assert enhanced.prompts == ("a kitty bouncing", "a puppy bouncing")
    first, second, *_ = make_plan(enhanced).changes
    assert (first.field, first.requested, first.effective, first.reason) == (
        "prompt", "a kitty jumps", "a kitty bouncing", "enhanced by the vocabulary of pocket",
    )  # fmt: skip
    assert (second.field, second.requested) == ("then_1", "a puppy hops")


def test_prompt_that_stays_is_no_change() -> None:
    request = enhance_request(build_request("a red ball bouncing at sunset"), Settings())
    assert make_plan(request).changes == ()


def test_further_prompts_may_be_enhanced_or_not() -> None:
    enhanced = filmlet.enhance_prompt("a kitty jumps")
    request = build_request("a red ball", extra_prompts=[enhanced])
    assert request.prompts == ("a red ball", "a kitty bouncing")
    assert request.extra_prompts == ("a kitty jumps",)


@pytest.mark.parametrize(
    "enhanced",
    [
        [filmlet.EnhancedPrompt("another", "text", "me")],
        [{"requested": "a ball", "text": "  ", "source": "me"}],
        [{"requested": "a ball"}],
        ["a ball"],
        "a ball",
        [filmlet.EnhancedPrompt("a ball", "a\0b", "me")],
        [filmlet.EnhancedPrompt("a ball", "text", "me")] * 2,
    ],
)
def test_enhanced_prompts_must_fit_the_request(enhanced: object) -> None:
    with pytest.raises(InvalidRequest) as refused:
        ClipRequest("a ball", enhanced_prompts=enhanced)  # type: ignore[arg-type]
    assert refused.value.param == "enhanced_prompts"


def test_more_prompts_than_are_enhanced_at_once_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="At most 8"):
        enhance_request(build_request("a ball", extra_prompts=["a ball"] * 8), Settings())
