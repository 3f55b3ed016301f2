"""Types of fields that programs send as such or, in a form, as text."""

from typing import Annotated

from pydantic import BeforeValidator, Field

LONGEST_PROMPT = 32_000  # characters, as OpenAI takes; of all prompts together
MAX_FURTHER = 31
Name = Annotated[str, Field(max_length=300)]  # of a model, or of a LoRA
Prompt = Annotated[str, Field(max_length=LONGEST_PROMPT)]


def _refuse_bool(sent: object) -> object:
    """Numbers are sent as such or as text; pydantic would take true for 1."""
    if isinstance(sent, bool):
        raise ValueError("a number is expected")
    return sent


def _refuse_number(sent: object) -> object:
    """Yes or no is sent as such or as text; pydantic would take 1 for true."""
    if not isinstance(sent, bool | str):
        raise ValueError("true or false is expected")
    return sent


def list_one(sent: object) -> object:
    """A form has one or several fields of a name."""
    return [sent] if isinstance(sent, str) else sent


Float = Annotated[float, BeforeValidator(_refuse_bool, json_schema_input_type=float | str)]
Number = Annotated[
    float | None, BeforeValidator(_refuse_bool, json_schema_input_type=float | str | None)
]
WholeNumber = Annotated[
    int | None, BeforeValidator(_refuse_bool, json_schema_input_type=int | str | None)
]
Flag = Annotated[bool, BeforeValidator(_refuse_number, json_schema_input_type=bool | str)]
ExtraPrompts = Annotated[
    list[Prompt],
    Field(max_length=MAX_FURTHER),
    BeforeValidator(
        list_one,
        json_schema_input_type=Annotated[list[Prompt], Field(max_length=MAX_FURTHER)] | Prompt,
    ),
    Field(
        description="Prompts after the first; each has an equal share of the clip. All together "
        f"have at most {LONGEST_PROMPT} characters."
    ),
]
EnhanceFlag = Annotated[
    Flag, Field(description="Have the prompts enhanced first; refused where nothing can.")
]
