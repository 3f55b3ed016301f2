"""The weights of one component: names, shapes and configuration read off its files, no library."""

import math
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from filmlet.core.checkpoint_headers import VALUE_BYTES, TensorEntry, read_header, read_json
from filmlet.core.model_card import ComponentFiles
from filmlet.engine.schemas import select_config
from filmlet.errors import CheckpointCorrupt
from filmlet.models import ltx_key_mapping

NUMPY_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16}


@dataclass(frozen=True)
class CheckpointWeights:
    """The weights of a component: of a folder in diffusers' layout, or some of a file's."""

    component: str
    path: Path

    @property
    def files(self) -> list[Path]:
        return [self.path] if self.path.is_file() else sorted(self.path.glob("*.safetensors"))

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """By the names of diffusers' module; read off the files' headers."""
        return {ours: shape for ours, (shape, _) in self._headers.items()}

    @property
    def values(self) -> int:
        """How many numbers they are."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @cached_property
    def bytes(self) -> int:
        """Of all of them, as they are in the files."""
        return sum(math.prod(shape) * size for shape, size in self._headers.values())

    @cached_property
    def config(self) -> dict[str, Any]:
        """What the module is built from. Raises CheckpointCorrupt."""
        if self.path.is_file():
            try:
                table = ltx_key_mapping.infer_config(self.component, self.shapes)
            except CheckpointCorrupt as error:
                raise CheckpointCorrupt(f"{self.path}: {error}") from error
        else:
            table = read_json(self.path / "config.json")
        return select_config(self.component, table, self.path, len(self.shapes))

    def arrays(
        self, names: Container[str] | None = None
    ) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Every tensor, or those wanted, with its name, in float32. Raises CheckpointCorrupt."""
        for file in self.files:
            tensors = read_header(file).tensors
            try:
                with file.open("rb") as opened:
                    for theirs, ours in self.to_diffusers_keys(tensors).items():
                        if names is not None and ours not in names:
                            continue
                        entry = tensors[theirs]
                        opened.seek(entry.start)
                        yield ours, _to_float32(entry, opened.read(entry.end - entry.start))
            except (OSError, KeyError, ValueError) as error:
                raise CheckpointCorrupt(f"{file} cannot be read: {error}.") from error

    def array(self, name: str) -> NDArray[np.float32]:
        """One of them. Raises KeyError, CheckpointCorrupt."""
        return next(array for array_name, array in self.arrays({name}))

    @property
    def has_8bit_weights(self) -> bool:
        """Whether some of them are, which only torch widens."""
        return any(size == 1 for _, size in self._headers.values())

    @cached_property
    def _headers(self) -> dict[str, tuple[tuple[int, ...], int]]:
        """Shape and bytes of one value, by the names of diffusers' module."""
        headers: dict[str, tuple[tuple[int, ...], int]] = {}
        for file in self.files:
            tensors = read_header(file).tensors
            for theirs, ours in self.to_diffusers_keys(tensors).items():
                entry = tensors[theirs]
                headers[ours] = entry.shape, VALUE_BYTES[entry.dtype]
        return headers

    def to_diffusers_keys(self, theirs: Iterable[str]) -> dict[str, str]:
        """Names in a file, with those of diffusers' module."""
        if self.path.is_file() and self.component in ltx_key_mapping.PREFIX:
            return ltx_key_mapping.to_diffusers_keys(self.component, theirs)
        return {name: name for name in theirs}


def load_latent_rgb_factors(files: ComponentFiles) -> NDArray[np.float32] | None:
    """Of a preview, where a checkpoint has one: (channels + 1, 3)."""
    if not files.preview:
        return None
    return dict(CheckpointWeights("preview", files.preview).arrays())["latent_to_rgb"]


def _to_float32(entry: TensorEntry, content: bytes) -> NDArray[np.float32]:
    """Numbers of 16 bits and more as they are in a file."""
    if entry.dtype == "BF16":  # the upper half of a float32
        values = (np.frombuffer(content, np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        values = np.frombuffer(content, NUMPY_DTYPES[entry.dtype]).astype(np.float32)
    return values.reshape(entry.shape)
