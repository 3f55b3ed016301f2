"""Loading of modules: built without memory, filled from .safetensors, checked by name."""

import re
from collections.abc import Container, Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from filmlet.core.checkpoint_headers import read_header
from filmlet.core.memory import OffloadMode
from filmlet.engine.placement import Placement
from filmlet.engine.state_dict import CheckpointWeights
from filmlet.engine.torch.block_offload import offload_blocks, widen
from filmlet.engine.torch.dtype import torch_dtype
from filmlet.errors import CheckpointCorrupt

PROGRESS_BYTES = 64 * 2**20  # bytes between two chances to stop
TENSORS_PER_MAPPING = 32  # tensors, converted, until the pages of their file are given back


def load_weights(
    module: nn.Module,
    weights: CheckpointWeights,
    placement: Placement,
    offloaded: Sequence[nn.Module] = (),
) -> Iterator[int]:
    """Give a module on the meta device its weights, on the device and in the dtype it computes in.

    Those of the blocks `offloaded` stay as they are in the file until they are used. Yields the
    bytes that were read, a piece at a time: whoever waits may stop here. Raises CheckpointCorrupt
    that names what is missing, too much or of another shape.
    """
    _check_keys(module, weights)
    offloaded_names = _names_of(module, offloaded)
    tensors: dict[str, Tensor] = {}
    scales: dict[str, float] = {}
    yield from _copy_tensors(tensors, scales, weights, placement, offloaded_names)
    module.load_state_dict(tensors, strict=False, assign=True)
    for name, scale in scales.items():
        # An attribute of the layer: while its weight is in 8 bits, whoever widens it needs both.
        module.get_submodule(name.removesuffix(".weight")).weight_scale = scale  # type: ignore[assignment]
    _move_computed_buffers(module, placement)
    _tie_weights(module)
    _check_complete(module, weights)
    module.requires_grad_(False).eval()
    if offloaded:
        # A CPU would cast ahead with the cores that it computes with, and has the less memory.
        offload_blocks(
            offloaded,
            placement,
            is_ahead=placement.device != "cpu",
            keeps_some=weights.component == "transformer"
            and placement.offload is OffloadMode.SEQUENTIAL,
        )


def _names_of(module: nn.Module, parts: Sequence[nn.Module]) -> set[str]:
    """Names in a module of the weights that are in some parts of it."""
    ids = {id(weight) for part in parts for weight in part.parameters()}
    return {name for name, weight in module.named_parameters() if id(weight) in ids}


def _move_computed_buffers(module: nn.Module, placement: Placement) -> None:
    """Bring what no file holds, such as the frequencies of rotary embeddings, to the device."""
    for layer in module.modules():
        for name, buffer in layer.named_buffers(recurse=False):
            if name in layer._non_persistent_buffers_set:
                setattr(layer, name, buffer.to(placement.device))


def _copy_tensors(
    tensors: dict[str, Tensor],
    scales: dict[str, float],
    weights: CheckpointWeights,
    placement: Placement,
    offloaded_names: Container[str],
) -> Iterator[int]:
    """Read every tensor to where it is held; yields bytes of those that are not offloaded.

    scales: gets what those are to be multiplied by that stay in 8 bits.
    """
    dtype, is_sequential = torch_dtype(placement), placement.offload == OffloadMode.SEQUENTIAL
    is_converted = not is_sequential and weights.bytes != weights.values * dtype.itemsize
    read = 0
    at_once = TENSORS_PER_MAPPING if is_converted else None
    for name, tensor, scale in iter_tensors(weights, at_once):
        if name not in offloaded_names:
            tensors[name] = widen(tensor.to(placement.device), dtype, scale)
            read += tensor.nbytes
        else:
            tensors[name] = tensor if is_sequential else tensor.to(placement.device)
            if scale != 1:
                scales[name] = scale
        if read >= PROGRESS_BYTES:
            yield read
            read = 0
    yield read


def _tie_weights(module: nn.Module) -> None:
    tie = getattr(module, "tie_weights", None)
    if callable(tie):
        tie()


def iter_tensors(
    weights: CheckpointWeights, at_once: int | None = None
) -> Iterator[tuple[str, Tensor, float]]:
    """Yield the name of every tensor, the tensor as it is stored, and its scale, 1 for most.

    Raises CheckpointCorrupt.

    at_once: how many share a mapping of their file, which goes with the last of them; None is all.
    """
    for file in weights.files:
        try:
            scales = weights.scales(file)
            names = list(weights.to_diffusers_keys(read_header(file).tensors).items())
            for first in range(0, len(names), at_once or max(1, len(names))):
                with safe_open(file, "pt") as tensors:
                    for theirs, ours in names[first:][:at_once]:
                        yield ours, tensors.get_tensor(theirs), scales.get(ours, 1.0)
        except (SafetensorError, OSError) as error:
            raise CheckpointCorrupt(f"{file} cannot be read: {error}.") from error


class WeightReader:
    """Single weights of a component, read off its files again. Raises CheckpointCorrupt."""

    def __init__(self, weights: CheckpointWeights) -> None:
        self.weights = weights

    @cached_property
    def _places(self) -> dict[str, tuple[Path, str, float]]:
        """File, name there and scale, by the names of diffusers' module."""
        places: dict[str, tuple[Path, str, float]] = {}
        for file in self.weights.files:
            scales = self.weights.scales(file)
            names = self.weights.to_diffusers_keys(read_header(file).tensors)
            places |= {o: (file, theirs, scales.get(o, 1.0)) for theirs, o in names.items()}
        return places

    def read(self, name: str) -> tuple[Tensor, float]:
        """Return a weight as it is stored, pages of its file, and its scale, 1 for most."""
        file, theirs, scale = self._places[name]
        try:
            with safe_open(file, "pt") as tensors:
                return tensors.get_tensor(theirs), scale
        except (SafetensorError, OSError) as error:
            raise CheckpointCorrupt(f"{file} cannot be read: {error}.") from error


def _check_complete(module: nn.Module, weights: CheckpointWeights) -> None:
    held = chain(module.named_parameters(), module.named_buffers())
    missing = [name for name, tensor in held if tensor.is_meta]
    if missing:
        raise CheckpointCorrupt(f"{weights.path}: no weights for {_shorten(missing)}.")


def _check_keys(module: nn.Module, weights: CheckpointWeights) -> None:
    """Names and shapes, before a byte of the weights is read."""
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    wrong = [n for n, shape in weights.shapes.items() if n in expected and expected[n] != shape]
    if wrong:
        raise CheckpointCorrupt(f"{weights.path}: wrong shape of {_shorten(wrong)}.")
    ignored = getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()
    surplus = [n for n in weights.shapes if n not in expected]
    surplus = [n for n in surplus if not any(re.search(i, n) for i in ignored)]
    if surplus:
        raise CheckpointCorrupt(f"{weights.path}: the model has no place for {_shorten(surplus)}.")


def _shorten(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(sorted(names)[:3]) + more


def build_on_meta(build: type[nn.Module], config: dict[str, object]) -> nn.Module:
    """Return a diffusers module from its config, without memory for its weights."""
    with torch.device("meta"):
        return build.from_config(config)  # type: ignore[attr-defined]
