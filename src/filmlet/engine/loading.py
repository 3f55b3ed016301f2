"""From files to modules: built without memory, filled from .safetensors, checked by name."""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from filmlet.budget import Hold
from filmlet.engine import lightricks
from filmlet.engine.lending import lend
from filmlet.engine.placement import Placement
from filmlet.errors import CheckpointDamaged

PIECE = 64 * 2**20  # bytes between two chances to stop
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1}


@dataclass(frozen=True)
class Weights:
    """The weights of a component: of a folder in diffusers' layout, or some of a file's."""

    component: str
    place: Path

    @property
    def files(self) -> list[Path]:
        return [self.place] if self.place.is_file() else sorted(self.place.glob("*.safetensors"))

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """By the names of diffusers' module; read off the files' headers."""
        return {ours: shape for ours, (shape, _) in self._headers.items()}

    @cached_property
    def bytes(self) -> int:
        """Of all of them, as they are in the files."""
        return sum(torch.Size(shape).numel() * size for shape, size in self._headers.values())

    @cached_property
    def config(self) -> dict[str, object]:
        """What the module is built from. Raises CheckpointDamaged."""
        if self.place.is_file():
            return lightricks.config(self.component, self.shapes)
        table: dict[str, object] = json.loads((self.place / "config.json").read_text())
        return table

    def read(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor with its name, one at a time. Raises CheckpointDamaged."""
        for file in self.files:
            try:
                with safe_open(file, "pt") as tensors:
                    for theirs, ours in self._names(tensors.keys()).items():
                        yield ours, tensors.get_tensor(theirs)
            except (SafetensorError, OSError) as error:
                raise CheckpointDamaged(f"{file} cannot be read: {error}.") from error

    @cached_property
    def _headers(self) -> dict[str, tuple[tuple[int, ...], int]]:
        """Shape and bytes of one value, by the names of diffusers' module."""
        found: dict[str, tuple[tuple[int, ...], int]] = {}
        for file in self.files:
            with file.open("rb") as opened:
                table = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
            for theirs, ours in self._names(table.keys() - {"__metadata__"}).items():
                entry = table[theirs]
                found[ours] = tuple(entry["shape"]), SIZES.get(entry["dtype"], 4)
        return found

    def _names(self, theirs: Iterable[str]) -> dict[str, str]:
        if self.place.is_file():
            return lightricks.names(self.component, theirs)
        return {name: name for name in theirs}


def fill(
    module: nn.Module,
    weights: Weights,
    placement: Placement,
    lent: nn.Module | None = None,
) -> Iterator[int]:
    """Give a module on the meta device its weights, on the device and in the dtype it computes in.

    Those of the blocks `lent` stay as they are in the file until they are used. Yields the bytes
    that were read, a piece at a time: whoever waits may stop here. Raises CheckpointDamaged that
    names what is missing, too much or of another shape.
    """
    _compare(module, weights)
    apart = {id(weight) for weight in lent.parameters()} if lent else set()
    stay = {name for name, weight in module.named_parameters() if id(weight) in apart}
    table: dict[str, Tensor] = {}
    read = 0
    for name, tensor in weights.read():
        is_lent, is_far = name in stay, placement.hold == Hold.LAYERS
        if is_lent:
            table[name] = tensor if is_far else tensor.to(placement.device)
        else:
            table[name] = tensor.to(placement.device, placement.dtype)
        read += 0 if is_lent else tensor.nbytes
        if read >= PIECE:
            yield read
            read = 0
    yield read
    module.load_state_dict(table, strict=False, assign=True)
    tie = getattr(module, "tie_weights", None)
    if callable(tie):
        tie()
    missing = [n for n, t in module.state_dict().items() if t.is_meta]
    if missing:
        raise CheckpointDamaged(f"{weights.place}: no weights for {_some(missing)}.")
    module.requires_grad_(False).eval()
    if lent:
        lend(lent, placement)


def _compare(module: nn.Module, weights: Weights) -> None:
    """Names and shapes, before a byte of the weights is read."""
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    wrong = [n for n, shape in weights.shapes.items() if n in wanted and wanted[n] != shape]
    if wrong:
        raise CheckpointDamaged(f"{weights.place}: wrong shape of {_some(wrong)}.")
    ignored = getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()
    surplus = [n for n in weights.shapes if n not in wanted]
    surplus = [n for n in surplus if not any(re.search(i, n) for i in ignored)]
    if surplus:
        raise CheckpointDamaged(f"{weights.place}: the model has no place for {_some(surplus)}.")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(sorted(names)[:3]) + more


def on_meta(build: type[nn.Module], config: dict[str, object]) -> nn.Module:
    """A diffusers module from its config, without memory for its weights."""
    with torch.device("meta"):
        return build.from_config(config)  # type: ignore[attr-defined]
