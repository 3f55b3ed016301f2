"""What can be a prompt."""

from filmlet.errors import InvalidRequest

MAX_PROMPTS = 32


def validate_text(param: str, text: object) -> None:
    """Text that every file, database and tokenizer can hold. Raises InvalidRequest."""
    if not isinstance(text, str):
        raise InvalidRequest(f"{param} must be text.", param=param)
    try:
        text.encode()  # fails at half of a surrogate
    except UnicodeEncodeError:
        is_text = False
    else:
        is_text = "\0" not in text  # PostgreSQL cannot store it
    if not is_text:
        raise InvalidRequest(f"{param} has characters that are no text.", param=param)


def parse_extra_prompts(value: object) -> tuple[str, ...]:
    """The prompts after the first. Raises InvalidRequest."""
    if not isinstance(value, (tuple, list)) or len(value) >= MAX_PROMPTS:
        raise InvalidRequest(
            f"extra_prompts is a list of at most {MAX_PROMPTS - 1} prompts.", param="extra_prompts"
        )
    for prompt in value:
        validate_text("extra_prompts", prompt)
        if not prompt.strip():
            raise InvalidRequest(
                "A further prompt is empty; say what comes then.", param="extra_prompts"
            )
    return tuple(value)
