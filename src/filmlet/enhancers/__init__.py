"""Enhancers: turn a short prompt into one that the chosen model understands best."""

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from typing import Protocol

from filmlet.core.enhanced_prompt import EnhancedPrompt
from filmlet.core.model_card import ModelCard
from filmlet.core.plain_values import to_path
from filmlet.core.request import ClipRequest, validate_text
from filmlet.enhancers.chat_endpoint import ChatEnhancer
from filmlet.enhancers.own_model import OwnModelEnhancer
from filmlet.enhancers.vocabulary import VocabularyEnhancer
from filmlet.errors import EnhancementUnavailable, InvalidRequest
from filmlet.models import get_card, list_vocabulary
from filmlet.settings import Settings

__all__ = [
    "EnhancedPrompt",
    "Enhancer",
    "check_prompts",
    "choose_enhancer",
    "enhance_prompt",
    "enhance_prompts",
    "enhance_request",
    "read_settings",
]

MAX_PROMPT_CHARS = 4000  # of a prompt that is enhanced; a longer one says all that a model reads
MAX_PROMPTS = 8  # that one request has enhanced, one after the other


class Enhancer(Protocol):
    """Writes prompts anew for one model."""

    @property
    def source(self) -> str:
        """What writes, as users read it."""

    def enhance(self, prompt: str) -> str:
        """Return the prompt that the model is to read. Raises EnhancementFailed, InvalidRequest."""


def choose_enhancer(card: ModelCard, settings: Settings, *, audio: bool = True) -> Enhancer:
    """Return the enhancer for a model: its own text encoder, if the settings ask for it and it can.

    Else by rule where the model has a vocabulary of words, and by the endpoint for all others.
    audio: whether the clip has sound, if the model makes it. Raises EnhancementUnavailable.
    """
    has_sound = card.makes_audio and audio
    if settings.enhancer == "model" and card.has_language_model:
        return OwnModelEnhancer(card, settings, has_sound)
    if vocabulary := list_vocabulary(card):
        return VocabularyEnhancer(card.name, frozenset(vocabulary))
    if settings.enhance_url and settings.enhance_model:
        return ChatEnhancer(settings, has_sound)
    raise EnhancementUnavailable(f"Nothing enhances prompts for {card.name} here.")


def enhance_prompt(
    prompt: str, model: str | PathLike[str] = "pocket", *, enhancer: str | None = None
) -> EnhancedPrompt:
    """Return the prompt in words that the model understands best.

    The chat endpoint is that of the settings (`FILMLET_ENHANCE_URL`); models with a small
    vocabulary need none. enhancer: "model" is the model's own text encoder, where that is a
    language model, "auto" is not; None is as the settings say. `generate` and `stream` take the
    result as their prompt. Raises InvalidRequest, UnknownModel, EnhancementFailed.
    """
    name = validate_text("model", to_path(model))
    return enhance_prompts([prompt], name, read_settings(enhancer))[0]


def read_settings(enhancer: str | None) -> Settings:
    """Return the settings, with another enhancer if one is named. Raises InvalidSetting."""
    settings = Settings.from_environment()
    return replace(settings, enhancer=enhancer) if enhancer else settings


def enhance_prompts(
    prompts: Sequence[str], model: str, settings: Settings, *, audio: bool = True
) -> tuple[EnhancedPrompt, ...]:
    """Return each of the prompts, enhanced. Raises what `enhance_prompt` raises."""
    check_prompts(prompts)
    enhancer = choose_enhancer(get_card(model), settings, audio=audio)
    return tuple(
        EnhancedPrompt(prompt, enhancer.enhance(prompt), enhancer.source) for prompt in prompts
    )


def enhance_request(request: ClipRequest, settings: Settings) -> ClipRequest:
    """Return the request with its prompts enhanced. Raises what `enhance_prompt` raises."""
    prompts = (request.prompt, *request.extra_prompts)
    enhanced = enhance_prompts(prompts, request.model, settings, audio=request.audio)
    return replace(request, enhanced_prompts=enhanced)


def check_prompts(prompts: Sequence[str]) -> None:
    """Raise InvalidRequest for prompts that are too many, too long, empty or no text."""
    if len(prompts) > MAX_PROMPTS:
        raise InvalidRequest(
            f"At most {MAX_PROMPTS} prompts can be enhanced at once, got {len(prompts)}.",
            param="extra_prompts",
        )
    for prompt in prompts:
        text = validate_text("prompt", prompt)
        if not text.strip():
            raise InvalidRequest("The prompt is empty; say what to show.", param="prompt")
        if len(text) > MAX_PROMPT_CHARS:
            raise InvalidRequest(
                f"A prompt of at most {MAX_PROMPT_CHARS} characters can be enhanced, "
                f"got {len(text)}.",
                param="prompt",
            )
