"""Tags of videos: what made a clip is in them."""

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from filmlet.media.decoder.messages import Message
from filmlet.media.decoder.videos import open_container


def read_tags(file: BinaryIO, order: dict[str, Any]) -> Iterator[Message]:
    """The tags that the order names, as a JSON object behind one line; in lower case."""
    found = {name.lower(): value for name, value in open_container(file, order).metadata.items()}
    named = {name: found[name] for name in order["names"] if name in found}
    yield {"tags": len(named)}, json.dumps(named).encode()
