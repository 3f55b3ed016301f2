"""What can be a prompt."""

from filmlet.errors import InvalidRequest

MOST = 32


def check_text(param: str, text: object) -> None:
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


def read_then(given: object) -> tuple[str, ...]:
    """The prompts after the first. Raises InvalidRequest."""
    if not isinstance(given, (tuple, list)) or len(given) >= MOST:
        raise InvalidRequest(f"then is a list of at most {MOST - 1} prompts.", param="then")
    for prompt in given:
        check_text("then", prompt)
        if not prompt.strip():
            raise InvalidRequest("A further prompt is empty; say what comes then.", param="then")
    return tuple(given)
