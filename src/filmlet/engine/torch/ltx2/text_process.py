"""The process that writes a prompt: told on stdin what, it answers on stdout with one JSON.

A process of its own, for it can be killed at any word; when whoever started it is gone, it ends.
"""

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from filmlet.engine.placement import best_device
from filmlet.engine.selection import torch_placement
from filmlet.engine.torch.ltx2.language_model import generate_tokens, load_language_model
from filmlet.errors import FilmletError
from filmlet.models.chat_prompt import build_chat_prompt


def main() -> int:
    """Write what the first line of stdin says."""
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        answer = write_text(order)
    except FilmletError as error:
        answer = {"error": error.code, "message": str(error)}
    except Exception as error:  # the outermost line: the parent is to hear of it, whatever it was
        answer = {"error": "unexpected", "message": f"{type(error).__name__}: {error}"[:300]}
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
    return 0


def write_text(order: dict[str, Any]) -> dict[str, Any]:
    """Return `text`, and `is_cut`: whether it had to end before its end."""
    chat = build_chat_prompt(Path(order["tokenizer"]), order["instructions"], order["prompt"])
    placement = torch_placement(best_device(order["device"]), cache=Path(order["cache"]))
    model = load_language_model(Path(order["text_encoder"]), placement)
    tokens = list(generate_tokens(model, chat.ids, chat.ends, order["max_tokens"]))
    return {"text": chat.decode(tokens), "is_cut": len(tokens) == order["max_tokens"]}


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
