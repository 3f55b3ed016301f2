"""The weights of one component: names, shapes and configuration read off its files, no library."""

import math
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from filmlet.core.checkpoint_headers import (
    VALUE_BYTES,
    TensorEntry,
    read_header,
    read_json,
)
from filmlet.core.model_card import ComponentFiles, ModelFamily
from filmlet.engine import ltx2_schemas, schemas
from filmlet.errors import CheckpointCorrupt
from filmlet.models import ltx2_key_mapping, ltx_key_mapping
from filmlet.models.ltx2_configs import infer_config, read_file_config, text_config

MAX_SCALE_BYTES = 16  # of a tensor of one number
NUMPY_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16}


@dataclass(frozen=True)
class CheckpointWeights:
    """The weights of a component: of a folder in diffusers' layout, or some of a file's.

    other_file: one that has more of them; the split files of LTX-2.5 have the connectors' first
    layers beside the text encoder.
    """

    component: str
    path: Path
    family: ModelFamily = ModelFamily.LTX_VIDEO
    other_file: Path | None = None

    @classmethod
    def from_files(cls, files: ComponentFiles, component: str) -> Self:
        """Those of a checkpoint's component, which it has."""
        path = getattr(files, component)
        assert path
        is_split = component == "connectors" and files.text_encoder.is_file()
        return cls(component, path, files.family, files.text_encoder if is_split else None)

    @property
    def files(self) -> list[Path]:
        if not self.path.is_file():
            return sorted(self.path.glob("*.safetensors"))
        return list(dict.fromkeys(file for file in (self.path, self.other_file) if file))

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by the names of diffusers' module; read off the files' headers."""
        return {ours: shape for ours, (shape, _) in self._headers.items()}

    @property
    def values(self) -> int:
        """Number of values of all tensors."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @cached_property
    def bytes(self) -> int:
        """Bytes of all tensors, as they are in the files."""
        return sum(math.prod(shape) * size for shape, size in self._headers.values())

    @cached_property
    def config(self) -> dict[str, Any]:
        """What the module is built from. Raises CheckpointCorrupt."""
        is_ltx2 = self.family is ModelFamily.LTX2
        table = None if self.path.is_file() else read_json(self.path / "config.json")
        try:
            if table is None:
                table = self._infer_config()
            elif is_ltx2 and self.component == "text_encoder":
                table = text_config(table)
        except CheckpointCorrupt as error:
            raise CheckpointCorrupt(f"{self.path}: {error}") from error
        schema = (ltx2_schemas if is_ltx2 else schemas).SCHEMAS[self.component]
        return schemas.select_config(table, schema, self.path, len(self.shapes))

    def _infer_config(self) -> dict[str, Any]:
        """What the module is built from, of a file that has none of diffusers' configurations."""
        if self.family is not ModelFamily.LTX2:
            return ltx_key_mapping.infer_config(self.component, self.shapes)
        table = read_file_config(self.component, read_header(self.path).metadata)
        return infer_config(self.component, self.shapes, table)

    def arrays(
        self, names: Container[str] | None = None
    ) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Yield tensors, all or those named, with names, in float32. Raises CheckpointCorrupt."""
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
        """Return one of them. Raises KeyError, CheckpointCorrupt."""
        return next(array for array_name, array in self.arrays({name}))

    @property
    def has_8bit_weights(self) -> bool:
        """Whether some weights are in 8 bits, which only torch widens."""
        return any(size == 1 for _, size in self._headers.values())

    @cached_property
    def _headers(self) -> dict[str, tuple[tuple[int, ...], int]]:
        """Shape and bytes of one value, by the names of diffusers' module."""
        headers: dict[str, tuple[tuple[int, ...], int]] = {}
        for file in self.files:
            tensors = read_header(file).tensors
            renamed = self.to_diffusers_keys(tensors)
            if self.family is ModelFamily.LTX2:
                self._check_number_formats(file, tensors, renamed)
            for theirs, ours in renamed.items():
                entry = tensors[theirs]
                headers[ours] = entry.shape, VALUE_BYTES[entry.dtype]
        return headers

    def _check_number_formats(
        self, file: Path, tensors: Mapping[str, TensorEntry], names: Iterable[str]
    ) -> None:
        try:
            ltx2_key_mapping.check_number_formats(tensors, names)
        except CheckpointCorrupt as error:
            raise CheckpointCorrupt(f"{file}: {error}") from error

    def scales(self, file: Path) -> dict[str, float]:
        """What layers in 8 bits of a file are to be multiplied by. Raises CheckpointCorrupt."""
        if self.family is not ModelFamily.LTX2:
            return {}
        tensors = read_header(file).tensors
        found = ltx2_key_mapping.scale_keys(self.component, tensors)
        return read_numbers(file, {ours: tensors[name] for name, ours in found.items()})

    def to_diffusers_keys(self, theirs: Iterable[str]) -> dict[str, str]:
        """Names in a file, with those of diffusers' module."""
        if self.family is ModelFamily.LTX2:
            return ltx2_key_mapping.component_keys(
                self.component, theirs, is_file=self.path.is_file()
            )
        if self.path.is_file() and self.component in ltx_key_mapping.PREFIX:
            return ltx_key_mapping.to_diffusers_keys(self.component, theirs)
        return {name: name for name in theirs}


def require_shape(weights: CheckpointWeights, name: str) -> tuple[int, ...]:
    """The shape of a weight, of a matrix two sizes at least. Raises CheckpointCorrupt."""
    shape = weights.shapes.get(name, ())
    if not shape:
        raise CheckpointCorrupt(f"{weights.path} holds no {name} of a {weights.component}.")
    return *shape, *[1] * (2 - len(shape) if name.endswith(".weight") else 0)


def require_equal(weights: CheckpointWeights, what: str, found: object, wanted: object) -> None:
    """Raises CheckpointCorrupt where what a file says is not what the others need."""
    if found != wanted:
        raise CheckpointCorrupt(
            f"{weights.path} does not fit the rest: {what} is {found} and should be {wanted}."
        )


def load_latent_rgb_factors(files: ComponentFiles) -> NDArray[np.float32] | None:
    """Return the matrix of previews, (channels + 1, 3), where a checkpoint has one."""
    if not files.preview:
        return None
    return dict(CheckpointWeights("preview", files.preview).arrays())["latent_to_rgb"]


def read_numbers(file: Path, entries: Mapping[str, TensorEntry]) -> dict[str, float]:
    """The value of each of some tensors of one number above 0. Raises CheckpointCorrupt."""
    numbers: dict[str, float] = {}
    try:
        with file.open("rb") as opened:
            for name, entry in entries.items():
                opened.seek(entry.start)
                values = _to_float32(
                    entry, opened.read(min(entry.end - entry.start, MAX_SCALE_BYTES))
                )
                numbers[name] = float(values.item())
    except (OSError, KeyError, ValueError) as error:
        raise CheckpointCorrupt(
            f"{file}: the scale of {name} is not one number, as the read formats have it."
        ) from error
    if wrong := [n for n, number in numbers.items() if not 0 < number < math.inf]:
        raise CheckpointCorrupt(f"{file}: the scale of {wrong[0]} is {numbers[wrong[0]]}.")
    return numbers


def _to_float32(entry: TensorEntry, content: bytes) -> NDArray[np.float32]:
    """Numbers of 16 bits and more as they are in a file."""
    if entry.dtype == "BF16":  # the upper half of a float32
        values = (np.frombuffer(content, np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        values = np.frombuffer(content, NUMPY_DTYPES[entry.dtype]).astype(np.float32)
    return values.reshape(entry.shape)
