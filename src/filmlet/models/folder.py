"""Are the files of a checkpoint there, and whole? Asked before anything heavy is loaded."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from filmlet.card import ModelCard
from filmlet.errors import CheckpointDamaged, CheckpointMissing

COMPONENTS = ("transformer", "vae", "text_encoder")


def check(card: ModelCard) -> Path:
    """The folder with the card's files; every component is there and its lengths are right.

    Raises CheckpointMissing or CheckpointDamaged with the file at fault.
    """
    if card.folder is None:
        raise CheckpointMissing(
            f"The weights of {card.name} are not on this machine. Give --model the folder of a "
            "checkpoint in diffusers' layout, or use the bundled model: --model pocket."
        )
    for path in (
        card.folder / "model_index.json",
        card.folder / "tokenizer" / "tokenizer_config.json",
        *(card.folder / c / "config.json" for c in COMPONENTS),
    ):
        if not path.is_file():
            raise CheckpointMissing(f"{path} is missing; install {card.name} again.")
        _check_json(path, stamp_of(path))
    for component in (card.folder / c for c in COMPONENTS):
        files = sorted(component.glob("*.safetensors"))
        if not files:
            raise CheckpointMissing(f"{component} holds no .safetensors file; fetch it again.")
        for weights in files:
            _check_length(weights, stamp_of(weights))
    return card.folder


def stamp_of(path: Path) -> tuple[int, int]:
    """Changes whenever the file does: a server checks with every request, and reads once."""
    state = path.stat()
    return state.st_mtime_ns, state.st_size


@lru_cache
def _check_json(path: Path, stamp: tuple[int, int]) -> None:
    del stamp
    read_json(path)


def read_json(path: Path) -> dict[str, object]:
    """One JSON object; CheckpointDamaged where there is none."""
    try:
        table = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointDamaged(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(table, dict):
        raise CheckpointDamaged(f"{path} does not hold a JSON object.")
    return table


@lru_cache
def _check_length(path: Path, stamp: tuple[int, int]) -> None:
    """A .safetensors file is as long as its header says; a cut download is not."""
    del stamp
    read_header(path)


def read_header(path: Path) -> dict[str, Any]:
    """The tensors of a .safetensors file by name; `__metadata__` is what else it says.

    Raises CheckpointDamaged, for a file that is cut off as well.
    """
    try:
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
            if header > 100_000_000:
                raise ValueError("the header is not one")
            table = json.loads(file.read(header))
        tensors = [entry for name, entry in table.items() if name != "__metadata__"]
        length = 8 + header + max(entry["data_offsets"][1] for entry in tensors)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointDamaged(f"{path} is not a .safetensors file ({error}).") from error
    if path.stat().st_size != length:
        raise CheckpointDamaged(
            f"{path} has {path.stat().st_size} bytes and should have {length}; fetch it again."
        )
    return cast(dict[str, Any], table)
