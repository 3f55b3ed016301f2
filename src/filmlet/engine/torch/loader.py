"""From files to modules: built without memory, filled from .safetensors, checked by name."""

import re
from collections.abc import Container, Iterator

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from filmlet.core.checkpoint_headers import read_header
from filmlet.core.memory import OffloadMode
from filmlet.engine.placement import Placement
from filmlet.engine.state_dict import CheckpointWeights
from filmlet.engine.torch.block_offload import offload_blocks
from filmlet.engine.torch.dtype import torch_dtype
from filmlet.errors import CheckpointCorrupt

PROGRESS_BYTES = 64 * 2**20  # bytes between two chances to stop
TENSORS_PER_MAPPING = 32  # tensors, converted, until the pages of their file are given back


def load_weights(
    module: nn.Module,
    weights: CheckpointWeights,
    placement: Placement,
    offloaded: nn.Module | None = None,
) -> Iterator[int]:
    """Give a module on the meta device its weights, on the device and in the dtype it computes in.

    Those of the blocks `offloaded` stay as they are in the file until they are used. Yields the
    bytes that were read, a piece at a time: whoever waits may stop here. Raises CheckpointCorrupt
    that names what is missing, too much or of another shape.
    """
    _check_keys(module, weights)
    offloaded_names = _names_of(module, offloaded) if offloaded else set()
    tensors: dict[str, Tensor] = {}
    yield from _copy_tensors(tensors, weights, placement, offloaded_names)
    module.load_state_dict(tensors, strict=False, assign=True)
    _tie_weights(module)
    _check_complete(module, weights)
    module.requires_grad_(False).eval()
    if offloaded:
        # A CPU would cast ahead with the cores that it computes with, and has the less memory.
        offload_blocks(offloaded, placement, is_ahead=placement.device != "cpu")


def _names_of(module: nn.Module, part: nn.Module) -> set[str]:
    """Names in a module of the weights that are in a part of it."""
    ids = {id(weight) for weight in part.parameters()}
    return {name for name, weight in module.named_parameters() if id(weight) in ids}


def _copy_tensors(
    tensors: dict[str, Tensor],
    weights: CheckpointWeights,
    placement: Placement,
    offloaded_names: Container[str],
) -> Iterator[int]:
    """Read every tensor to where it is held; yields bytes of those that are not offloaded."""
    dtype, is_sequential = torch_dtype(placement), placement.offload == OffloadMode.SEQUENTIAL
    is_converted = not is_sequential and weights.bytes != weights.values * dtype.itemsize
    read = 0
    for name, tensor in iter_tensors(weights, TENSORS_PER_MAPPING if is_converted else None):
        if name not in offloaded_names:
            tensors[name] = tensor.to(placement.device, dtype)
            read += tensor.nbytes
        elif is_sequential:
            tensors[name] = tensor
        else:
            tensors[name] = tensor.to(placement.device)
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
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor with its name, as it is stored, one at a time. Raises CheckpointCorrupt.

    at_once: how many share a mapping of their file, which goes with the last of them; None is all.
    """
    for file in weights.files:
        try:
            names = list(weights.to_diffusers_keys(read_header(file).tensors).items())
            for first in range(0, len(names), at_once or max(1, len(names))):
                with safe_open(file, "pt") as tensors:
                    for theirs, ours in names[first:][:at_once]:
                        yield ours, tensors.get_tensor(theirs)
        except (SafetensorError, OSError) as error:
            raise CheckpointCorrupt(f"{file} cannot be read: {error}.") from error


def _check_complete(module: nn.Module, weights: CheckpointWeights) -> None:
    missing = [name for name, tensor in module.state_dict().items() if tensor.is_meta]
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
    """A diffusers module from its config, without memory for its weights."""
    with torch.device("meta"):
        return build.from_config(config)  # type: ignore[attr-defined]
