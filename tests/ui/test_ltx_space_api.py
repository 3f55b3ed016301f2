"""Programs written for the LTX distilled Space, and MCP clients, use the page's three names."""

import asyncio
import base64
import io
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from gradio_client import Client, handle_file
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client
from mcp.types import Tool
from numpy.typing import NDArray
from PIL import Image

from filmlet.jobs import ApiKeyStore
from filmlet.jobs.database import Database
from filmlet.settings import Settings
from tests.helpers.given_files import (
    COLORS,
    corners,
    four_colors,
    heic_of_tiles,
    is_near,
    make_png,
)
from tests.helpers.servers import Running, make_servers

pytestmark = [pytest.mark.server, pytest.mark.filterwarnings("ignore")]  # of the clients' own
NAMES = ("text_to_video", "image_to_video", "video_to_video")
# In the Space's own order, as programs without keywords send them; then what it has not.
PARAMETERS = (
    "prompt", "negative_prompt", "input_image_filepath", "input_video_filepath", "height_ui",
    "width_ui", "mode", "duration_ui", "ui_frames_to_use", "seed_ui", "randomize_seed",
    "ui_guidance_scale", "improve_texture_flag", "audio",
)  # fmt: skip
SMALL: dict[str, Any] = {
    "prompt": "a red ball moving left on white", "height_ui": 64, "width_ui": 96,
    "duration_ui": 0.3, "seed_ui": 5, "randomize_seed": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    home = tmp_path_factory.mktemp("dropin")
    starts = make_servers()
    running = next(starts)(Settings(home=home, worker="dropin", max_per_minute=1000))
    running.wait_ready()
    yield running
    next(starts, None)
    assert not list((home / "passing").glob("*")), "the page's passing files stayed"


def connect(server: Running, folder: Path, **options: Any) -> Client:
    return Client(server.url, verbose=False, download_files=str(folder), **options)


def frame(path: str) -> NDArray[np.uint8]:
    """The first one, (height, width, 3)."""
    with av.open(path) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")


def size(path: str) -> tuple[int, int, int]:
    with av.open(path) as container:
        frames = list(container.decode(video=0))
    return frames[0].width, frames[0].height, len(frames)


def test_three_names_have_the_spaces_parameters(server: Running, tmp_path: Path) -> None:
    told: Any = connect(server, tmp_path).view_api(return_format="dict", print_info=False)
    endpoints = told["named_endpoints"]
    assert set(endpoints) == {f"/{name}" for name in NAMES}
    for endpoint in endpoints.values():
        assert tuple(p["parameter_name"] for p in endpoint["parameters"]) == PARAMETERS
        assert [r["component"] for r in endpoint["returns"]] == ["Video", "Number"]


def test_program_for_the_space_gets_its_clip_and_seed(server: Running, tmp_path: Path) -> None:
    client = connect(server, tmp_path)
    path, seed = client.predict(**SMALL, api_name="/text_to_video")
    assert seed == 5
    assert size(path) == (96, 64, 7)
    _, other = client.predict(**SMALL | {"randomize_seed": True}, api_name="/text_to_video")
    assert other != 5


def test_program_that_sends_the_spaces_parameters_alone_is_served(server: Running) -> None:
    """As curl sends them: without names, and without what the Space does not have."""
    data = ["a red ball", "", None, None, 64, 96, "text-to-video", 0.3, 9, 5, False, 1.0, True]
    call = "/gradio_api/call/text_to_video"
    event = server.client.post(call, json={"data": data}).json()["event_id"]
    told = server.client.get(f"{call}/{event}").text
    assert "event: complete" in told, told
    assert told.rstrip().endswith(", 5]")


def test_sound_that_is_not_wanted_is_not_asked_for(server: Running, tmp_path: Path) -> None:
    client = connect(server, tmp_path)
    client.predict(**SMALL | {"audio": False}, api_name="/text_to_video")
    newest = server.client.get("/v1/videos", params={"limit": 1}).json()["data"][0]
    assert newest["requested"]["audio"] is False


def test_spaces_own_default_size_is_fitted_to_the_model(server: Running, tmp_path: Path) -> None:
    asked = {"prompt": "a red ball", "duration_ui": 0.05, "seed_ui": 1, "randomize_seed": False}
    path, _ = connect(server, tmp_path).predict(**asked, api_name="/text_to_video")
    width, height, _ = size(path)
    assert (width, height) == (512, 372)


def test_what_cannot_be_made_is_said_in_a_sentence(server: Running, tmp_path: Path) -> None:
    client = connect(server, tmp_path)
    with pytest.raises(Exception, match="The prompt is empty"):
        client.predict(**SMALL | {"prompt": " "}, api_name="/text_to_video")
    with pytest.raises(Exception, match="distilled to run without guidance"):
        client.predict(**SMALL | {"ui_guidance_scale": 3}, api_name="/text_to_video")


def test_twenty_clients_at_once_are_served_in_order(server: Running, tmp_path: Path) -> None:
    made: list[tuple[str, int]] = []

    def ask(seed: int) -> None:
        client = connect(server, tmp_path / str(seed))
        made.append(client.predict(**SMALL | {"seed_ui": seed}, api_name="/text_to_video"))

    threads = [threading.Thread(target=ask, args=(100 + i,)) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sorted(seed for _, seed in made) == list(range(100, 120))
    videos = server.client.get("/v1/videos", params={"limit": 100, "order": "asc"}).json()["data"]
    ours = [v for v in videos if 100 <= v["seed"] < 120]
    done = [v["id"] for v in sorted(ours, key=lambda v: v["completed_at"])]
    places = [done.index(v["id"]) for v in ours]
    # Whole seconds tell the order, so neighbours may tie; nobody waits much longer than his turn.
    assert max(abs(place - i) for i, place in enumerate(places)) <= 6


def test_picture_and_a_video_begin_the_clip(server: Running, tmp_path: Path) -> None:
    client = connect(server, tmp_path)
    picture, footage = tmp_path / "blue.png", tmp_path / "blue.mp4"
    Image.new("RGB", (96, 64), (35, 75, 225)).save(picture)
    path, _ = client.predict(
        **SMALL, input_image_filepath=handle_file(picture), api_name="/image_to_video"
    )
    first = frame(path)
    assert first[..., 2].mean() > first[..., 0].mean() + 60, "it does not begin with the picture"
    Path(path).rename(footage)
    for sent in (handle_file(footage), {"video": handle_file(footage), "subtitles": None}):
        path, _ = client.predict(**SMALL, input_video_filepath=sent, api_name="/video_to_video")
        first = frame(path)
        assert first[..., 2].mean() > first[..., 0].mean() + 60, "it does not begin with the video"


def test_files_are_taken_as_they_are_sent(server: Running, tmp_path: Path) -> None:
    client = connect(server, tmp_path)
    ramp = np.tile(np.arange(256, dtype=np.uint16) * 257, (192, 1))
    (tmp_path / "grey.png").write_bytes(make_png(ramp))
    (tmp_path / "tiles.heic").write_bytes(heic_of_tiles(four_colors(400, 300)))
    small = SMALL | {"height_ui": 96, "width_ui": 128}
    shown = {}
    for name in ("grey.png", "tiles.heic"):
        path, _ = client.predict(
            **small, input_image_filepath=handle_file(tmp_path / name), api_name="/image_to_video"
        )
        shown[name] = frame(path)
    assert is_near(corners(shown["tiles.heic"]), COLORS, 25)
    assert is_near(corners(shown["grey.png"])[:2], [(64,) * 3, (192,) * 3], 40)
    (tmp_path / "text.png").write_text("no picture")
    sent = handle_file(tmp_path / "text.png")
    with pytest.raises(Exception, match=r"text\.png: this is not a whole PNG") as refused:
        client.predict(**small, input_image_filepath=sent, api_name="/image_to_video")
    assert str(server.home) not in str(refused.value)


@pytest.mark.parametrize("with_progress", [False, True])
def test_mcp_client_makes_a_clip_and_gets_its_url_alone(
    server: Running, with_progress: bool
) -> None:
    heard: list[float] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        del total, message
        heard.append(progress)

    async def talk() -> tuple[list[Tool], list[Any], list[Any]]:
        address = f"{server.url}/gradio_api/mcp/"
        async with (
            streamablehttp_client(address) as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = (await session.list_tools()).tools
            callback = hear if with_progress else None
            made = await session.call_tool("text_to_video", SMALL, progress_callback=callback)
            begun = await session.call_tool(
                "image_to_video",
                SMALL | {"input_image_filepath": blue_data_url()},
                progress_callback=callback,
            )
            assert not made.isError
            assert not begun.isError
            return tools, made.content, begun.content

    tools, *results = asyncio.run(talk())
    descriptions = {tool.name: str(tool.description) for tool in tools}
    assert set(descriptions) >= set(NAMES)
    for name in NAMES:
        assert "return the URL of the MP4" in descriptions[name]
    for content in results:
        (only,) = content
        assert only.type == "text"
        assert re.fullmatch(
            rf"{server.url}/gradio_api/file=[0-9a-f]+/clip_[0-9a-f]+\.mp4", only.text
        )
        answer = server.client.get(only.text)
        assert answer.headers["content-type"] == "video/mp4"
        with av.open(io.BytesIO(answer.content)) as container:
            assert len(list(container.decode(video=0))) == 7
    assert bool(heard) == with_progress


def blue_data_url() -> str:
    file = io.BytesIO()
    Image.new("RGB", (96, 64), (35, 75, 225)).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def test_caller_without_a_key_gets_nothing_where_keys_are_in_use(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    settings = Settings(home=tmp_path_factory.mktemp("keyed"), worker="keyed")
    database = Database(settings)
    secret = ApiKeyStore(database, settings).add("ann").secret
    database.close()
    starts = make_servers()
    server = next(starts)(settings)
    with pytest.raises(Exception, match="401 Unauthorized"):
        connect(server, tmp_path).predict(**SMALL, api_name="/text_to_video")
    headers = {"authorization": f"Bearer {secret}"}
    path, seed = connect(server, tmp_path, headers=headers).predict(
        **SMALL, api_name="/text_to_video"
    )
    assert (size(path), seed) == ((96, 64, 7), 5)
    next(starts, None)
