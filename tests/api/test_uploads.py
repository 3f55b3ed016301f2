"""What clients send: pictures and videos judged by their content, bodies by their size."""

import io
import struct
import zlib
from collections.abc import Iterator

import httpx2
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from tests.helpers.servers import Running, refusal


def picture(form: str = "PNG", size: tuple[int, int] = (64, 64)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (200, 30, 40)).save(file, form)
    return file.getvalue()


def bomb() -> bytes:
    """A small PNG that says it is 60000 x 60000 pixels."""
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (picture()[:-30], "invalid_input_reference"),
        (picture("GIF"), "invalid_input_reference"),
        (bomb(), "invalid_input_reference"),
        (b"<svg onload=alert(1)>", "invalid_input_reference"),
        (b"", "invalid_input_reference"),
        (b"\x00" * 1000, "invalid_input_reference"),
    ],
)
def test_pictures_are_checked_by_their_content(client: TestClient, data: bytes, code: str) -> None:
    files = {"input_reference": ("../../x.png", data, "image/png")}
    answer = client.post("/v1/videos", data={"prompt": "a"}, files=files)
    assert answer.status_code == 400
    assert refusal(answer)["code"] == code


def test_videos_are_checked_by_their_content(client: TestClient, pocket_clip, tmp_path) -> None:
    pocket_clip.save(tmp_path / "clip.mp4")
    whole = (tmp_path / "clip.mp4").read_bytes()
    for path, told in (("edits", "not_offered"), ("extensions", "invalid_video")):
        for data, code in (
            (whole if path == "edits" else b"", told),
            (whole[:900], "invalid_video"),
            (b"x" * 99, "invalid_video"),
        ):
            answer = client.post(
                f"/v1/videos/{path}", data={"prompt": "a"}, files={"video": ("a.mp4", data)}
            )
            assert answer.status_code == 400
            assert refusal(answer)["code"] == code


def test_body_over_the_limit_is_refused_while_it_comes(shared_server: Running) -> None:
    import psutil

    process = psutil.Process(shared_server.process.pid)
    before = process.memory_info().rss

    def endless() -> Iterator[bytes]:
        for _ in range(300):
            yield bytes(2**20)

    for _ in range(2):
        try:
            answer = shared_server.client.post("/v1/videos", content=endless())
            assert answer.status_code == 413
        except httpx2.HTTPError:
            pass  # the server hung up first, as it may
    assert process.memory_info().rss - before < 250e6
    assert shared_server.client.get("/health").status_code == 200
