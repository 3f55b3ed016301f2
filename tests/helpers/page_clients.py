"""Programs that use a server's page: gradio_client and an MCP client, with a key."""

import asyncio
import json
from pathlib import Path
from typing import Any

from gradio_client import Client, handle_file
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client
from PIL import Image

SENT: dict[str, Any] = {
    "prompt": "a red ball moving left on white", "height_ui": 64, "width_ui": 96,
    "duration_ui": 0.3, "seed_ui": 5, "randomize_seed": False,
}  # fmt: skip


def use_page_functions(url: str, secret: str, folder: Path) -> None:
    """Upload a picture, wait in the page's queue, download the clip."""
    picture = folder / "blue.png"
    Image.new("RGB", (96, 64), "blue").save(picture)
    headers = {"authorization": f"Bearer {secret}"}
    client = Client(url, verbose=False, headers=headers, download_files=str(folder))
    path, seed = client.predict(
        **SENT, input_image_filepath=handle_file(picture), api_name="/image_to_video"
    )
    assert seed == 5
    assert Path(path).read_bytes()[4:8] == b"ftyp"


def use_tool(url: str, secret: str) -> str:
    """Make a clip as an MCP client; returns its URL."""

    async def talk() -> str:
        headers = {"authorization": f"Bearer {secret}"}
        async with (
            streamablehttp_client(f"{url}/gradio_api/mcp/", headers=headers) as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            answer = await session.call_tool("text_to_video", SENT)
            assert not answer.isError, json.dumps(str(answer.content))
            return str(answer.content[0].text)  # type: ignore[union-attr]

    return asyncio.run(talk())
