"""A conversation as Gemma 3 reads it: one turn of a user, and the begin of the model's."""

from dataclasses import dataclass
from pathlib import Path

from filmlet.errors import CheckpointCorrupt
from filmlet.models.tokenizer import Tokenizer, load_tokenizer

TURN_START, TURN_END = "<start_of_turn>", "<end_of_turn>"
END_OF_TEXT = "<eos>"


@dataclass(frozen=True, eq=False)
class ChatPrompt:
    """ids: that the model is to go on from; ends: ids of which any ends its turn."""

    tokenizer: Tokenizer
    ids: list[int]
    ends: frozenset[int]

    def decode(self, ids: list[int]) -> str:
        """Return the text of a turn."""
        text: str = self.tokenizer.reader.decode(ids, skip_special_tokens=True)
        return text


def build_chat_prompt(place: Path, instructions: str, prompt: str) -> ChatPrompt:
    """Return a conversation in which the prompt follows the instructions.

    Signs of turns within the prompt are text as any other: it cannot end its own turn. place: of
    the tokenizer. Raises CheckpointCorrupt where that knows no turns.
    """
    tokenizer = load_tokenizer(place)  # its own: how it reads is changed
    reader = tokenizer.reader
    start, end, end_of_text = map(reader.token_to_id, (TURN_START, TURN_END, END_OF_TEXT))
    if start is None or end is None:
        raise CheckpointCorrupt(f"{place} has no tokens for the turns of a conversation.")
    reader.encode_special_tokens = True

    def read(text: str) -> list[int]:
        ids: list[int] = reader.encode(text, add_special_tokens=False).ids
        return ids

    begin = [] if tokenizer.start is None else [tokenizer.start]
    asked = [start, *read(f"user\n{instructions}\n\n{prompt.strip()}"), end]
    ids = [*begin, *asked, *read("\n"), start, *read("model\n")]
    return ChatPrompt(tokenizer, ids, frozenset(i for i in (end, end_of_text) if i is not None))
