"""Enhancement by the model's own text encoder, where that is a language model (Gemma 3).

It runs in a process of its own: that can be stopped between two words, gives its memory back before
the clip is made, and a web process imports no torch.
"""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filmlet.core.model_card import ModelCard
from filmlet.enhancers.chat_answer import clean_answer
from filmlet.enhancers.instructions import build_instructions
from filmlet.errors import EnhancementFailed, EnhancementUnavailable, OutOfMemory
from filmlet.models import hub_cache
from filmlet.models.checkpoint_files import is_complete
from filmlet.settings import Settings

CHILD = (sys.executable, "-m", "filmlet.engine.torch.ltx2.text_process")
MAX_TOKENS = 512  # of a prompt that is written: a paragraph takes 250
TIMEOUT_S = 600.0  # of reading the weights and writing one prompt
WAIT_S = 60.0  # for a prompt that is being written for somebody else
ONE_AT_A_TIME = threading.Lock()  # two would take the memory of two text encoders


@dataclass(frozen=True)
class OwnModelEnhancer:
    """The text encoder of a model, which goes on with a text. has_sound: whether the clip has."""

    card: ModelCard
    settings: Settings
    has_sound: bool

    @property
    def source(self) -> str:
        """Return what writes."""
        return f"the text encoder of {self.card.name}"

    def enhance(self, prompt: str) -> str:
        """Have the prompt written: the same one always, for each word is the likeliest.

        Takes the memory of the whole text encoder. Raises EnhancementFailed,
        EnhancementUnavailable.
        """
        if find_spec("torch") is None:
            raise EnhancementUnavailable(f"{self._name} takes torch: pip install 'filmlet[torch]'.")
        order = {
            "text_encoder": str(self._locate("text_encoder")),
            "tokenizer": str(self._locate("tokenizer")),
            "device": self.settings.device,
            "cache": str(self.settings.cache),
            "instructions": build_instructions(has_sound=self.has_sound),
            "prompt": prompt,
            "max_tokens": MAX_TOKENS,
        }
        if not ONE_AT_A_TIME.acquire(timeout=WAIT_S):
            raise EnhancementUnavailable(f"{self._name} is writing another prompt.")
        try:
            answer = self._ask(order)
        finally:
            ONE_AT_A_TIME.release()
        if answer["is_cut"]:
            raise EnhancementFailed("The prompt enhancer's answer was cut off for its length.")
        return clean_answer(answer["text"])

    @property
    def _name(self) -> str:
        return self.source[0].upper() + self.source[1:]

    def _locate(self, component: str) -> Path:
        path = hub_cache.local_path(getattr(self.card.sources, component))
        if path is None or not is_complete(path):
            raise EnhancementUnavailable(f"{self._name} is not on this machine.")
        return path

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """Return the answer of the process."""
        with _text_process(TIMEOUT_S) as child:
            assert child.stdin
            assert child.stdout
            child.stdin.write(json.dumps(order) + "\n")
            child.stdin.flush()
            line = child.stdout.readline()
        if not line:
            raise EnhancementUnavailable(
                f"{self._name} did not answer within {TIMEOUT_S:g} s, or was ended."
            )
        answer: dict[str, Any] = json.loads(line)
        if answer.get("error") == OutOfMemory.code:
            raise EnhancementUnavailable(f"{self._name} {answer['message']}")
        if "error" in answer:
            raise EnhancementUnavailable(f"{self._name} cannot be run here.", answer["message"])
        return answer


@contextmanager
def _text_process(timeout_s: float) -> Iterator["subprocess.Popen[str]"]:
    """The process that writes; it ends with the block, or after its time, whatever it is doing."""
    pipe, quiet = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(CHILD, stdin=pipe, stdout=pipe, stderr=quiet, text=True) as child:
        timer = threading.Timer(timeout_s, child.kill)
        timer.start()
        try:
            yield child
        except BrokenPipeError as error:
            raise EnhancementUnavailable("The prompt enhancer cannot be started.") from error
        finally:
            timer.cancel()
            child.kill()
