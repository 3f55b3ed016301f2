"""The promises, one function each; an AssertionError or a client's error breaks one."""

import io
import json
import re
import struct
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self, TypeVar

import httpx2
import openai
from openai import OpenAI
from openai.types import Video

LONGEST_S = 300.0
STATUSES = {"queued", "in_progress", "completed", "failed"}
PROMPT = "a red square on a black background"


@dataclass
class Server:
    """The server in question, and clips that several promises share."""

    url: str
    key: str
    model: str
    size: Any  # the client's types know only OpenAI's own sizes and lengths
    seconds: Any

    @cached_property
    def client(self) -> OpenAI:
        return OpenAI(base_url=self.url, api_key=self.key, max_retries=0)

    @cached_property
    def plain(self) -> httpx2.Client:
        headers = {"authorization": f"Bearer {self.key}"}
        return httpx2.Client(
            base_url=self.url.rstrip("/") + "/", headers=headers, timeout=LONGEST_S
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.plain.close()

    def create(self, prompt: str = PROMPT) -> Video:
        return self.client.videos.create(
            prompt=prompt, model=self.model, size=self.size, seconds=self.seconds
        )

    @cached_property
    def done(self) -> Video:
        """A finished clip."""
        return self.client.videos.poll(self.create().id)


def creates_a_video(server: Server) -> None:
    """create answers at once with a video of every required field."""
    started = time.monotonic()
    video = server.create()
    assert time.monotonic() - started < 10, "create waits for the clip"
    Video.model_validate(video.to_dict() | {"size": "720x1280"}, strict=True)  # its own sizes only
    assert video.object == "video"
    assert video.status in STATUSES
    assert video.model == server.model
    assert video.size == server.size
    assert float(video.seconds) == float(server.seconds)
    assert isinstance(video.seconds, str), "seconds is text"
    assert abs(video.created_at - time.time()) < 600


def polls_until_completed(server: Server) -> None:
    """create_and_poll comes back with a completed video."""
    video = server.client.videos.create_and_poll(
        prompt=PROMPT, model=server.model, size=server.size, seconds=server.seconds
    )
    assert video.status == "completed", video
    assert video.progress == 100
    assert video.error is None
    assert video.completed_at is not None
    assert video.completed_at >= video.created_at


def progress_only_grows(server: Server) -> None:
    """progress is a whole number of percent that never falls, and says when to ask again."""
    video, last, asked = server.create(), 0, 0
    end = time.monotonic() + LONGEST_S
    while video.status in ("queued", "in_progress") and time.monotonic() < end:
        answer = server.client.videos.with_raw_response.retrieve(video.id)
        video = answer.parse()
        assert isinstance(video.progress, int)
        assert last <= video.progress <= 100, (last, video.progress)
        last = video.progress
        wait = answer.headers.get("openai-poll-after-ms")
        if video.status in ("queued", "in_progress"):
            assert wait is not None, "no openai-poll-after-ms while it runs"
            assert 0 < int(wait) <= 60_000
            asked += 1
        time.sleep(0.05)
    assert video.status == "completed"
    assert asked, "the clip was done before it was asked for once; choose a longer one"


def content_is_an_mp4(server: Server) -> None:
    """content is an MP4; thumbnail and spritesheet are pictures."""
    clip = server.client.videos.download_content(server.done.id).read()
    assert clip[4:8] == b"ftyp", clip[:16]
    for variant in ("thumbnail", "spritesheet"):
        answer = server.plain.get(f"videos/{server.done.id}/content", params={"variant": variant})
        assert answer.is_success, answer.text
        assert answer.headers["content-type"].startswith("image/")
        assert len(answer.content) > 50


def content_comes_in_ranges(server: Server) -> None:
    """content answers ranges: a middle, an end, and none beyond."""
    path = f"videos/{server.done.id}/content"
    whole = server.plain.get(path).content
    for text, expected in (("10-99", whole[10:100]), ("-50", whole[-50:]), ("100-", whole[100:])):
        answer = server.plain.get(path, headers={"range": f"bytes={text}"})
        assert answer.status_code == 206, answer.status_code
        assert answer.content == expected
        assert answer.headers["content-range"].endswith(f"/{len(whole)}")
    beyond = server.plain.get(path, headers={"range": f"bytes={len(whole)}-"})
    assert beyond.status_code == 416


def content_of_an_unfinished_clip_is_refused_once(server: Server) -> None:
    """content of a clip that is not there yet is no error that clients retry by themselves."""
    answer = server.plain.get(f"videos/{server.create().id}/content")
    assert answer.status_code in (200, 400, 404), answer.status_code
    if answer.is_success:  # it was done already
        assert answer.content[4:8] == b"ftyp"
    else:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def lists_in_pages(server: Server) -> None:
    """list goes through every video once, in both orders, page by page."""
    ids = {server.done.id, server.create().id, server.create().id}
    for order in ("desc", "asc"):
        found = [v.id for v in server.client.videos.list(limit=2, order=order)]
        assert len(found) == len(set(found)), "a video comes twice"
        assert ids <= set(found)
        times = [v.created_at for v in server.client.videos.list(limit=2, order=order)]
        assert times == sorted(times, reverse=order == "desc")
    page = server.plain.get("videos", params={"limit": 1}).json()
    assert page["object"] == "list"
    assert page["has_more"] is True
    assert page["last_id"] == page["data"][-1]["id"]


def remixes(server: Server) -> None:
    """remix makes a new video that names its source."""
    video = server.client.videos.remix(server.done.id, prompt="a blue star on white")
    assert video.id != server.done.id
    assert video.remixed_from_video_id == server.done.id
    assert video.size == server.done.size
    assert video.prompt == "a blue star on white"


def deletes(server: Server) -> None:
    """delete ends a running job, answers in its shape, and the video is gone."""
    video = server.create()
    answer = server.client.videos.delete(video.id)
    assert (answer.id, answer.object, answer.deleted) == (video.id, "video.deleted", True)
    _refused(openai.NotFoundError, lambda: server.client.videos.retrieve(video.id))


def takes_json_and_forms(server: Server) -> None:
    """create takes multipart without a file, and JSON."""
    fields = {"prompt": PROMPT, "model": server.model, "size": server.size}
    for sent in (
        {"json": fields | {"seconds": server.seconds}},
        {"files": {k: (None, v) for k, v in (fields | {"seconds": server.seconds}).items()}},
    ):
        answer = server.plain.post("videos", **sent)
        assert answer.is_success, answer.text
        assert answer.json()["seconds"] == server.done.seconds


def one_idempotency_key_makes_one_video(server: Server) -> None:
    """the same Idempotency-Key makes the same video."""
    key = {"Idempotency-Key": f"conformance-{time.time_ns()}"}
    fields = {"prompt": PROMPT, "size": server.size, "model": server.model}
    first, second = (server.plain.post("videos", json=fields, headers=key).json() for _ in "12")
    assert first["id"] == second["id"]


def refuses_in_the_envelope(server: Server) -> None:
    """bad requests are refused with the error envelope and the right class."""
    client: Any = server.client.videos
    empty = _refused(openai.BadRequestError, lambda: client.create(prompt=" "))
    assert empty.param == "prompt", empty.body
    size = _refused(openai.BadRequestError, lambda: client.create(prompt=PROMPT, size="huge"))
    assert size.param == "size", size.body
    _refused(openai.BadRequestError, lambda: client.create(prompt=PROMPT, seconds="-4"))
    _refused(openai.BadRequestError, lambda: client.create(prompt=PROMPT, model="sora-99"))
    _refused(openai.NotFoundError, lambda: client.retrieve("video_that_is_not_there"))
    _refused(openai.NotFoundError, lambda: client.download_content("video_that_is_not_there"))
    _refused(openai.NotFoundError, lambda: client.remix("video_that_is_not_there", prompt="x"))
    broken = io.BytesIO(b"this is no picture")
    bad = {"prompt": PROMPT, "input_reference": ("a.png", broken, "image/png")}
    _refused(openai.BadRequestError, lambda: client.create(**bad))


def takes_a_picture_or_says_that_it_cannot(server: Server) -> None:
    """input_reference makes a video, or is refused with the envelope."""
    client: Any = server.client.videos
    width, height = map(int, server.size.split("x"))
    picture = ("first.png", io.BytesIO(_png(width, height)), "image/png")
    fields = {"model": server.model, "size": server.size, "seconds": server.seconds}
    try:
        video = client.create(prompt=PROMPT, input_reference=picture, **fields)
        assert client.poll(video.id).status == "completed"
    except openai.BadRequestError as error:
        _envelope(error)


def _png(width: int, height: int) -> bytes:
    """A plain red picture."""
    rows = (b"\0" + b"\xd0\x20\x20" * width) * height
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def lists_models(server: Server) -> None:
    """models lists the model in question."""
    assert server.model in [model.id for model in server.client.models.list()]
    assert server.client.models.retrieve(server.model).object == "model"


Refused = TypeVar("Refused", bound=openai.APIStatusError)


def _refused(kind: type[Refused], call: Callable[[], object]) -> Refused:
    try:
        call()
    except kind as error:
        _envelope(error)
        return error
    raise AssertionError(f"was not refused with {kind.__name__}")


def _envelope(error: openai.APIStatusError) -> None:
    told = json.loads(error.response.text)["error"]
    assert set(told) == {"message", "type", "param", "code"}, told
    assert re.fullmatch(r"[a-z_]+", told["code"]), told
    assert len(told["message"]) > 10


CHECKS: list[Callable[[Server], None]] = [
    creates_a_video,
    polls_until_completed,
    progress_only_grows,
    content_is_an_mp4,
    content_comes_in_ranges,
    content_of_an_unfinished_clip_is_refused_once,
    lists_in_pages,
    remixes,
    deletes,
    takes_json_and_forms,
    one_idempotency_key_makes_one_video,
    refuses_in_the_envelope,
    takes_a_picture_or_says_that_it_cannot,
    lists_models,
]
