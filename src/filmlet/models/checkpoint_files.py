"""Are the files of a checkpoint there, and whole? Asked before anything heavy is loaded."""

import math
import re
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from filmlet.core.checkpoint_headers import TensorEntry, read_header, read_json
from filmlet.core.model_card import Components, Files, ModelCard
from filmlet.errors import CheckpointDamaged, CheckpointMissing
from filmlet.models import hub_cache

INDEX = "*.safetensors.index.json"  # names every file of weights that were cut into several
SHARD = re.compile(r"[\w.-]+\.safetensors", re.ASCII)
FRESH_NS = 2_000_000_000  # within which a file system's clock may not have ticked
Stamp = tuple[int, int, int]


def locate(card: ModelCard) -> Files | None:
    """Where a card's components lie, all whole; None while some are at the Hub only.

    Raises CheckpointMissing or CheckpointDamaged for files that were here before.
    """
    places: dict[str, Path] = {}
    for name, source in card.sources.there():
        place = hub_cache.place(source)
        try:
            if place is None:
                raise CheckpointMissing(f"{source.repo} is not on this machine.")
            _check(place)
        except CheckpointMissing:
            if not source.root:
                return None
            raise
        places[name] = place
    return Components(**places)


def parameters(files: Files) -> Components[float]:
    """How many values each component has, read off the headers of folders in diffusers' layout."""
    counts = {name: _values(place) for name, place in files.there()}
    return Components(**counts)


def _values(place: Path) -> float:
    there = [f for f in hub_cache.files(place) if f.suffix == ".safetensors"]
    tables = [_header(file, stamp_of(file)) for file in there]
    return float(sum(math.prod(entry.shape) for table in tables for entry in table.values()))


def is_whole(place: Path) -> bool:
    """Whether a component is here, whole."""
    try:
        _check(place)
    except (CheckpointMissing, CheckpointDamaged):
        return False
    return True


def _check(place: Path) -> None:
    """A component, whole: its configuration, and weights as long as their header says."""
    if place.suffix == ".safetensors":
        _check_weights(place)
        return
    is_tokenizer = place.name == "tokenizer"
    config = place / ("tokenizer_config.json" if is_tokenizer else "config.json")
    if not config.is_file():
        raise CheckpointMissing(f"{config} is missing; install or fetch the model again.")
    _check_json(config, stamp_of(config))
    if is_tokenizer:
        return
    shards = {
        place / name for index in place.glob(INDEX) for name in _shards(index, stamp_of(index))
    }
    files = sorted(shards or place.glob("*.safetensors"))
    if not files:
        raise CheckpointMissing(f"{place} holds no .safetensors file; fetch it again.")
    for weights in files:
        _check_weights(weights)


def _check_weights(weights: Path) -> None:
    if not weights.is_file():
        raise CheckpointMissing(f"{weights} is missing; fetch it again.")
    _check_length(weights, stamp_of(weights))


@lru_cache
def _shards(index: Path, stamp: Stamp) -> frozenset[str]:
    del stamp
    table = read_json(index).get("weight_map")
    names = table.values() if isinstance(table, dict) else ()
    for name in names:
        if not isinstance(name, str) or not SHARD.fullmatch(name):
            raise CheckpointDamaged(f"{index} names {str(name)[:80]!r}, no file of its folder.")
    return frozenset(names)


def stamp_of(path: Path) -> Stamp:
    """Changes whenever the file does: a server checks with every request, and reads once.

    A file that was just written may be written again by the same clock: it is read each time.
    """
    state, now = path.stat(), time.time_ns()
    return state.st_mtime_ns, state.st_size, now if abs(now - state.st_mtime_ns) < FRESH_NS else 0


@lru_cache
def _check_json(path: Path, stamp: Stamp) -> None:
    del stamp
    read_json(path)


@lru_cache
def _check_length(path: Path, stamp: Stamp) -> None:
    """A .safetensors file is as long as its header says; a cut download is not."""
    del stamp
    read_header(path)


@lru_cache
def _header(path: Path, stamp: Stamp) -> Mapping[str, TensorEntry]:
    """Each tensor's dtype, shape and place."""
    del stamp
    return read_header(path).tensors
