"""JSON of rows that databases before the renaming of 0.1.0 hold, read under today's names."""

import json
from typing import Any

OLD_NAMES = {
    "backward": "extend_backward",
    "context": "context_frames",
    "given": "source_frames",
    "hold": "offload",
    "levers": "optimizations",
    "made_frames": "generated_frames",
    "made_height": "generated_height",
    "made_width": "generated_width",
    "then": "extra_prompts",
    "value_bytes": "bytes_per_value",
}
OLD_WINDOW_NAMES = {
    "end": "end_frame",
    "first": "start_frame",
    "prompt": "prompt_index",
    "shared": "overlap_frames",
}
OLD_OFFLOAD_MODES = {
    "all": "none",
    "layers": "sequential",
    "stored": "layerwise_casting",
    "turns": "model",
}


def load_json(text: str) -> dict[str, Any]:
    """Return the JSON object of a row; rows keep the names that they were written in."""
    old: dict[str, Any] = json.loads(text)
    table = {OLD_NAMES.get(name, name): value for name, value in old.items()}
    if "hold" in old:
        table["offload"] = OLD_OFFLOAD_MODES.get(old["hold"], old["hold"])
    if "windows" in old:
        table["windows"] = [_rename_keys(window, OLD_WINDOW_NAMES) for window in old["windows"]]
    for change in table.get("changes", ()):
        change["field"] = OLD_NAMES.get(change["field"], change["field"])
    return table


def _rename_keys(table: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in table.items()}
