"""Enhancement by a language model at an OpenAI-compatible chat endpoint.

The operator sets the endpoint, never a client: it may be on this machine. Its answers are text of a
stranger all the same: their time and size are limited before they are read.
"""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx2

from filmlet.enhancers.chat_answer import clean_answer
from filmlet.enhancers.instructions import build_instructions
from filmlet.errors import EnhancementFailed, EnhancementUnavailable
from filmlet.settings import Settings

MAX_ANSWER_BYTES = 256 * 1024  # of the HTTP body
MAX_DETAIL_CHARS = 200  # of an error of the network
MAX_TOKENS = 1000  # a paragraph takes 250; thinking comes before it
TEMPERATURE = 0.2


@dataclass(frozen=True)
class ChatEnhancer:
    """The language model of the settings. has_sound: whether the clip has sound."""

    settings: Settings
    has_sound: bool

    @property
    def source(self) -> str:
        """Return the language model's name."""
        return str(self.settings.enhance_model)

    def enhance(self, prompt: str) -> str:
        """Ask the language model. Raises EnhancementFailed, EnhancementUnavailable."""
        return clean_answer(read_message(_run(self._ask(prompt))))

    async def _ask(self, prompt: str) -> bytes:
        """Return the body of the answer; it takes `enhance_timeout_s` at most in all."""
        timeout_s = self.settings.enhance_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                return await self._post(self._body(prompt))
        except (TimeoutError, httpx2.TimeoutException) as error:
            raise EnhancementUnavailable(
                f"The prompt enhancer did not answer within {timeout_s:g} s."
            ) from error
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            detail = f"{type(error).__name__}: {error}"[:MAX_DETAIL_CHARS]
            message = "The prompt enhancer cannot be reached."
            raise EnhancementUnavailable(message, detail) from error

    async def _post(self, body: dict[str, Any]) -> bytes:
        url = httpx2.URL(self.settings.enhance_url or "")
        headers = {"user-agent": "filmlet", "accept-encoding": "identity"}
        if self.settings.enhance_key:
            headers["authorization"] = f"Bearer {self.settings.enhance_key}"
        # The proxy of the environment, or where a redirect leads, must not learn the key.
        async with (
            httpx2.AsyncClient(timeout=self.settings.enhance_timeout_s, trust_env=False) as client,
            client.stream(
                "POST", url.copy_with(path=f"{url.path.rstrip('/')}/chat/completions"),
                json=body, headers=headers, follow_redirects=False,
            ) as answer,
        ):  # fmt: skip
            if answer.status_code != 200:
                raise EnhancementFailed(f"The prompt enhancer answered {answer.status_code}.")
            return await _read_body(answer)

    def _body(self, prompt: str) -> dict[str, Any]:
        instructions = build_instructions(has_sound=self.has_sound)
        return {
            "model": self.settings.enhance_model,
            "messages": [
                {"role": "system", "content": instructions},
                {"role": "user", "content": prompt},
            ],
            "temperature": TEMPERATURE,
            "max_tokens": MAX_TOKENS,
            "stream": False,
        }


def _run(asking: Any) -> bytes:
    """Run a coroutine, in a thread of its own where this one has an event loop (notebooks)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return bytes(asyncio.run(asking))
    with ThreadPoolExecutor(1) as pool:
        return bytes(pool.submit(asyncio.run, asking).result())


async def _read_body(answer: httpx2.Response) -> bytes:
    """Return the body as it was sent: what unpacks to gigabytes is not unpacked."""
    body = b""
    if answer.headers.get("content-encoding", "identity") != "identity":
        raise EnhancementFailed("The prompt enhancer's answer is compressed.")
    async for piece in answer.aiter_raw():
        body += piece
        if len(body) > MAX_ANSWER_BYTES:
            raise EnhancementFailed("The prompt enhancer's answer is too large.")
    return body


def read_message(body: bytes) -> str:
    """Return the text of a chat completion. Raises EnhancementFailed."""
    try:
        choice = json.loads(body)["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason")
        content, refusal = message.get("content"), message.get("refusal")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise EnhancementFailed("The prompt enhancer's answer is no chat completion.") from error
    if refusal or reason == "content_filter":
        raise EnhancementFailed("The prompt enhancer refuses this prompt.")
    if reason == "length":
        raise EnhancementFailed("The prompt enhancer's answer was cut off for its length.")
    if not isinstance(content, str):
        raise EnhancementFailed("The prompt enhancer's answer has no text.")
    return content
