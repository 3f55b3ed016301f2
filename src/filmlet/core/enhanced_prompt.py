"""A prompt as it was asked, and what the model reads instead of it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EnhancedPrompt:
    """What an enhancer made of a prompt.

    requested: as it was asked; text: what the model reads; source: what wrote the text, empty where
    it is the prompt itself.
    """

    requested: str
    text: str
    source: str


def to_enhanced_prompt(prompt: str | EnhancedPrompt) -> EnhancedPrompt:
    """Return a prompt that nothing has enhanced as one that the model reads as it is."""
    return prompt if isinstance(prompt, EnhancedPrompt) else EnhancedPrompt(prompt, prompt, "")
