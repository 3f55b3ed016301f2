"""Enhancement by a language model: what it is asked, and every answer that it may give."""

import asyncio
import gzip
import json
import time
from contextlib import suppress
from dataclasses import replace

import pytest

import filmlet
from filmlet.enhancers import choose_enhancer, enhance_prompts
from filmlet.enhancers.chat_answer import MAX_CHARS, clean_answer
from filmlet.enhancers.chat_endpoint import MAX_TOKENS
from filmlet.enhancers.instructions import WITH_SOUND, WITHOUT_SOUND
from filmlet.errors import EnhancementFailed, EnhancementUnavailable
from filmlet.models import REGISTRY
from filmlet.settings import Settings
from tests.helpers.chat_endpoints import KEY, PARAGRAPH, ChatEndpoint, chat, chat_settings

__all__ = ["chat"]
MODEL = "ltxv-2b-0.9.8-distilled"
IDEA = "a ship in a storm"


def enhance(settings: Settings, prompt: str = IDEA) -> filmlet.EnhancedPrompt:
    (enhanced,) = enhance_prompts([prompt], MODEL, settings)
    return enhanced


def test_model_of_the_settings_is_asked(chat: ChatEndpoint) -> None:
    assert enhance(chat_settings(chat)) == filmlet.EnhancedPrompt(IDEA, PARAGRAPH, "scribe")
    ((path, headers, sent),) = chat.asked
    assert path == "/v1/chat/completions"
    assert headers["authorization"] == f"Bearer {KEY}"
    assert sent["model"] == "scribe"
    assert sent["max_tokens"] == MAX_TOKENS
    assert sent["temperature"] < 0.5
    assert [message["role"] for message in sent["messages"]] == ["system", "user"]
    assert sent["messages"][1]["content"] == IDEA


def test_no_key_is_sent_where_there_is_none(chat: ChatEndpoint) -> None:
    enhance(chat_settings(chat, enhance_key=None, enhance_url=f"{chat.url}/"))
    ((path, headers, _),) = chat.asked
    assert path == "/v1/chat/completions"
    assert "authorization" not in headers


def test_sound_is_asked_for_where_the_clip_has_some(chat: ChatEndpoint) -> None:
    loud = next(card for card in REGISTRY.values() if card.makes_audio)
    silent = REGISTRY[MODEL]
    for card, audio, words in (
        (loud, True, WITH_SOUND),
        (loud, False, WITHOUT_SOUND),
        (silent, True, WITHOUT_SOUND),
    ):
        choose_enhancer(card, chat_settings(chat), audio=audio).enhance(IDEA)
        assert words in chat.asked[-1][2]["messages"][0]["content"]


def test_proxy_of_the_environment_is_not_asked(
    chat: ChatEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert enhance(chat_settings(chat)).text == PARAGRAPH


def test_python_in_a_notebook_has_an_event_loop(
    chat: ChatEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in vars(chat_settings(chat)).items():
        if name.startswith("enhance_"):
            monkeypatch.setenv(f"FILMLET_{name.upper()}", str(value))

    async def cell() -> filmlet.EnhancedPrompt:
        return filmlet.enhance_prompt(IDEA, model=MODEL)

    assert asyncio.run(cell()).text == PARAGRAPH


@pytest.mark.parametrize(
    "answer",
    [
        PARAGRAPH,
        f"  {PARAGRAPH}\n\n",
        f'"{PARAGRAPH}"',
        f"“{PARAGRAPH}”",
        f"**{PARAGRAPH}**",
        f"```\n{PARAGRAPH}\n```",
        f"Here you go:\n```text\n{PARAGRAPH}\n```\nEnjoy!",
        f"Here is the enhanced prompt:\n\n{PARAGRAPH}",
        f"Sure! Here's your prompt:\n{PARAGRAPH}",
        f"Certainly.\n\nPrompt: {PARAGRAPH}",
        f"**Enhanced prompt:** {PARAGRAPH}",
        f"<think>The user wants a ship.\nPrompt: no.</think>\n{PARAGRAPH}",
        f"The user wants a ship.</think>{PARAGRAPH}",
        f"<thinking>One</thinking><think>two</think>{PARAGRAPH}",
        f"{PARAGRAPH}\n\nNote: I kept the ship.",
        f"{PARAGRAPH}\n\n(Let me know what to change.)",
        PARAGRAPH.replace(" as ", "\n as\t"),
        PARAGRAPH.replace("rain", "\u202erain\x07\x1b"),
    ],
)
def test_prompt_alone_is_kept(answer: str) -> None:
    assert clean_answer(answer) == PARAGRAPH


def test_speech_keeps_its_quotes() -> None:
    speech = '"Come here," she says, and the dog barks: "Woof"'
    assert clean_answer(speech) == speech
    assert clean_answer("A woman's hand opens a door.") == "A woman's hand opens a door."
    # A scene may begin with a label, a language may have its own letters.
    assert clean_answer("Night: a fox crosses a road.") == "Night: a fox crosses a road."
    assert clean_answer("Ein Schild, auf dem “Über 90 %” steht") == (
        "Ein Schild, auf dem “Über 90 %” steht"
    )


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "empty"),
        ("\n \t", "empty"),
        ('""', "empty"),
        ("<think>I am not done", "empty"),
        ("Here is the prompt:", "empty"),
        ("x " * MAX_CHARS, "too long"),
        ("x" * 100_000, "too long"),
        ("I'm sorry, but I can't help with that.", "refuses"),
        ("I cannot create this.", "refuses"),
    ],
)
def test_answer_that_is_no_prompt_is_refused(answer: str, reason: str) -> None:
    with pytest.raises(EnhancementFailed, match=reason):
        clean_answer(answer)


@pytest.mark.parametrize(
    "piece", ["<think>", "</think>", "```x\n", "\n", "Sure: ", "\nnote", "*", "“", " ", "prompt"]
)
def test_hostile_answer_takes_no_time(piece: str) -> None:
    started = time.process_time()
    with suppress(EnhancementFailed):
        clean_answer((piece * 20_000)[:19_990] + "end")
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"status": 500}, "answered 500"),
        ({"status": 401}, "answered 401"),
        ({"status": 204}, "answered 204"),
        ({"status": 307, "headers": {"location": "http://127.0.0.1:9/"}}, "answered 307"),
        ({"body": b"<html><h1>It works!</h1></html>"}, "no chat completion"),
        ({"body": b""}, "no chat completion"),
        ({"body": b"[" * 200_000}, "no chat completion"),
        ({"body": b'{"error": {"message": "no such model"}}'}, "no chat completion"),
        ({"body": b'{"choices": []}'}, "no chat completion"),
        ({"body": b'{"choices": [null]}'}, "no chat completion"),
        ({"body": b" " * 300_000}, "too large"),
        (
            {
                "body": gzip.compress(b" " * 10_000_000, mtime=0),
                "headers": {"content-encoding": "gzip"},
            },
            "compressed",
        ),
        ({"message": {"content": None, "refusal": "No."}}, "refuses"),
        ({"message": {"content": None}}, "no text"),
        ({"message": {"content": ["a", "b"]}}, "no text"),
        ({"choice": {"finish_reason": "length"}}, "cut off"),
        ({"choice": {"finish_reason": "content_filter"}}, "refuses"),
        ({"message": {"content": ""}}, "empty"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_answer_that_cannot_be_used_is_told(
    chat: ChatEndpoint, fields: dict[str, object], reason: str
) -> None:
    for name, value in fields.items():
        setattr(chat, name, value)
    with pytest.raises(EnhancementFailed, match=reason) as failed:
        enhance(chat_settings(chat))
    text = str(failed.value)
    assert not isinstance(failed.value, EnhancementUnavailable)
    assert failed.value.code == "enhancement_failed"
    assert failed.value.public_message == text
    assert text.endswith("The prompt can be used as it is.")
    assert "127.0.0.1" not in text
    assert KEY not in text
    assert len(chat.asked) == 1  # asked once, and nobody else


def test_slow_answer_ends_in_time(chat: ChatEndpoint) -> None:
    chat.pause_s = 0.2  # each byte comes before any limit on a single read
    started = time.monotonic()
    with pytest.raises(EnhancementUnavailable, match="within 1 s") as failed:
        enhance(chat_settings(chat, enhance_timeout_s=1.0))
    assert time.monotonic() - started < 5
    assert failed.value.code == "enhancement_unavailable"


@pytest.mark.parametrize("host", ["127.0.0.1:9", "no-such-host.invalid"])
def test_endpoint_that_is_not_there_is_told(host: str) -> None:
    settings = Settings(enhance_url=f"http://ann:hunter2@{host}/v1", enhance_model="scribe")
    with pytest.raises(EnhancementUnavailable, match="cannot be reached") as failed:
        enhance(settings)
    assert "ConnectError" in str(failed.value)
    assert failed.value.public_message == (
        "The prompt enhancer cannot be reached. The prompt can be used as it is."
    )
    assert host not in str(failed.value)
    assert "hunter2" not in str(failed.value)


def test_model_without_vocabulary_needs_an_endpoint() -> None:
    with pytest.raises(EnhancementUnavailable, match=f"Nothing enhances prompts for {MODEL}"):
        enhance(Settings())


def test_query_of_the_base_url_stays(chat: ChatEndpoint) -> None:
    settings = replace(chat_settings(chat), enhance_url=f"{chat.url}?api-version=1")
    assert enhance(settings).text == PARAGRAPH
    assert chat.asked[0][0] == "/v1/chat/completions?api-version=1"
    assert json.dumps(chat.asked[0][2]).isascii()
