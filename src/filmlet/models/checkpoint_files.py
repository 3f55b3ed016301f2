"""Are the files of a checkpoint there, and whole? Asked before anything heavy is loaded."""

import math
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from filmlet.core.checkpoint_headers import (
    VALUE_BYTES,
    Header,
    TensorEntry,
    read_header,
    read_json,
)
from filmlet.core.model_card import ComponentFiles, Components, ModelCard, ModelFamily
from filmlet.errors import CheckpointCorrupt, CheckpointNotFound
from filmlet.models import hub_cache, ltx2_configs, ltx2_key_mapping
from filmlet.models.ltx2_key_mapping import is_ltx2
from filmlet.models.ltx_key_mapping import infer_config, to_diffusers_keys

INDEX = "*.safetensors.index.json"  # names every file of weights that were cut into several
SHARD = re.compile(r"[\w.-]+\.safetensors", re.ASCII)
LTX2_FILE_COMPONENTS = ("transformer", "connectors", "vae", "audio_vae", "vocoder")
PROJECTION_NAMES = {"text_proj_in.weight", "video_text_proj_in.weight"}  # of connectors
FRESH_NS = 2_000_000_000  # within which a file system's clock may not have ticked
Stamp = tuple[int, int, int]


def local_files(card: ModelCard) -> ComponentFiles | None:
    """Return the paths of a card's components, all whole; None while some are at the Hub only.

    Raises CheckpointNotFound or CheckpointCorrupt for files that were here before.
    """
    places: dict[str, Path] = {}
    for name, source in card.sources.present():
        path = hub_cache.local_path(source)
        try:
            if path is None:
                raise CheckpointNotFound(f"{source.repo} is not on this machine.")
            _check_file(path)
        except CheckpointNotFound:
            if not source.root:
                return None
            raise
        places[name] = path
    return Components(**places)


@dataclass(frozen=True)
class SingleFile:
    """What a file of one's own is. version: of LTX-2, else "".

    components: that it holds. has_8bit_weights: whether some of the transformer's are.
    """

    version: str
    components: frozenset[str]
    has_8bit_weights: bool

    @property
    def family(self) -> ModelFamily:
        return ModelFamily.LTX2 if self.version else ModelFamily.LTX_VIDEO


def inspect_single_file(file: Path) -> SingleFile:
    """What a file holds, which is a transformer at least. Raises CheckpointCorrupt.

    Asked before the parts that it lacks are fetched for it.
    """
    return _inspect_file(file, file_stamp(file))


@lru_cache
def _inspect_file(file: Path, stamp: Stamp) -> SingleFile:
    del stamp
    header = read_header(file)
    try:
        if is_ltx2(header.tensors):
            return _inspect_ltx2_file(header)
        for component in ("transformer", "vae"):
            renamed = to_diffusers_keys(component, header.tensors)
            shapes = {new: header.tensors[name].shape for name, new in renamed.items()}
            infer_config(component, shapes)
    except CheckpointCorrupt as error:
        raise CheckpointCorrupt(f"{file} is no checkpoint that is read: {error}") from error
    has_8bit = any(VALUE_BYTES[entry.dtype] == 1 for entry in header.tensors.values())
    return SingleFile("", frozenset(("transformer", "vae")), has_8bit)


def _inspect_ltx2_file(header: Header) -> SingleFile:
    found = set[str]()
    tensors = header.tensors
    for component in LTX2_FILE_COMPONENTS:
        renamed = ltx2_key_mapping.to_diffusers_keys(component, tensors)
        shapes = {new: tensors[name].shape for name, new in renamed.items()}
        # The split files have the connectors' first layers beside the text encoder.
        if component == "connectors" and shapes and not PROJECTION_NAMES & shapes.keys():
            found.add(component)
        elif shapes:
            ltx2_key_mapping.check_number_formats(tensors, renamed)
            ltx2_configs.infer_config(
                component, shapes, ltx2_configs.read_file_config(component, header.metadata)
            )
            found.add(component)
    names = ltx2_key_mapping.to_diffusers_keys("transformer", tensors)
    version = ltx2_key_mapping.read_version(header.metadata, names.values())
    has_8bit = any(VALUE_BYTES[tensors[name].dtype] == 1 for name in names)
    return SingleFile(version, frozenset(found), has_8bit)


def count_parameters(files: ComponentFiles) -> Components[float]:
    """How many values each component has, read off the headers of its files."""
    counts = {name: _count_values(files.family, name, path) for name, path in files.present()}
    if files.connectors and files.text_encoder.is_file() and files.connectors != files.text_encoder:
        counts["connectors"] += _count_values(files.family, "connectors", files.text_encoder)
    return Components(**counts)


def _count_values(family: ModelFamily, component: str, path: Path) -> float:
    if component in ("tokenizer", "distilled_lora"):  # a LoRA is merged, and adds no values
        return 0.0
    count = 0
    for file in (f for f in hub_cache.files(path) if f.suffix == ".safetensors"):
        tensors = _read_header(file, file_stamp(file))
        names: Iterable[str] = tensors
        if family is ModelFamily.LTX2:
            names = ltx2_key_mapping.component_keys(component, tensors, is_file=path.is_file())
        count += sum(math.prod(tensors[name].shape) for name in names)
    return float(count)


def is_complete(path: Path) -> bool:
    """Return whether a component is here, whole."""
    try:
        _check_file(path)
    except (CheckpointNotFound, CheckpointCorrupt):
        return False
    return True


def _check_file(path: Path) -> None:
    """A component, whole: its configuration, and weights as long as their header says."""
    if path.suffix.lower() == ".safetensors":
        _check_weights(path)
        return
    is_tokenizer = path.name == "tokenizer"
    config = path / ("tokenizer_config.json" if is_tokenizer else "config.json")
    if not config.is_file():
        raise CheckpointNotFound(f"{config} is missing; install or fetch the model again.")
    _check_json(config, file_stamp(config))
    if is_tokenizer:
        return
    shards = {
        path / name for index in path.glob(INDEX) for name in _shards(index, file_stamp(index))
    }
    files = sorted(shards or path.glob("*.safetensors"))
    if not files:
        raise CheckpointNotFound(f"{path} holds no .safetensors file; fetch it again.")
    for weights in files:
        _check_weights(weights)


def _check_weights(weights: Path) -> None:
    if not weights.is_file():
        raise CheckpointNotFound(f"{weights} is missing; fetch it again.")
    _check_length(weights, file_stamp(weights))


@lru_cache
def _shards(index: Path, stamp: Stamp) -> frozenset[str]:
    del stamp
    table = read_json(index).get("weight_map")
    names = table.values() if isinstance(table, dict) else ()
    for name in names:
        if not isinstance(name, str) or not SHARD.fullmatch(name):
            raise CheckpointCorrupt(f"{index} names {str(name)[:80]!r}, no file of its folder.")
    return frozenset(names)


def file_stamp(path: Path) -> Stamp:
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
def _read_header(path: Path, stamp: Stamp) -> Mapping[str, TensorEntry]:
    """Return each tensor's dtype, shape and place."""
    del stamp
    return read_header(path).tensors
