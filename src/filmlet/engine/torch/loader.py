"""From files to modules: built without memory, filled from .safetensors, checked by name."""

import re
from collections.abc import Iterator

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from filmlet.core.memory import Hold
from filmlet.engine.placement import Placement
from filmlet.engine.state_dict import Weights
from filmlet.engine.torch.block_offload import lend
from filmlet.engine.torch.dtype import dtype_of
from filmlet.errors import CheckpointDamaged

PIECE = 64 * 2**20  # bytes between two chances to stop
FEW = 32  # tensors, converted, until the pages of their file are given back


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
    dtype, done = dtype_of(placement), 0
    is_converted = (
        placement.hold != Hold.LAYERS and weights.bytes != weights.values * dtype.itemsize
    )
    for name, tensor in read(weights, FEW if is_converted else None):
        is_lent, is_far = name in stay, placement.hold == Hold.LAYERS
        if is_lent:
            table[name] = tensor if is_far else tensor.to(placement.device)
        else:
            table[name] = tensor.to(placement.device, dtype)
        done += 0 if is_lent else tensor.nbytes
        if done >= PIECE:
            yield done
            done = 0
    yield done
    module.load_state_dict(table, strict=False, assign=True)
    tie = getattr(module, "tie_weights", None)
    if callable(tie):
        tie()
    missing = [n for n, t in module.state_dict().items() if t.is_meta]
    if missing:
        raise CheckpointDamaged(f"{weights.place}: no weights for {_some(missing)}.")
    module.requires_grad_(False).eval()
    if lent:
        # A CPU would cast ahead with the cores that it computes with, and has the less memory.
        lend(lent, placement, is_ahead=placement.device != "cpu")


def read(weights: Weights, at_once: int | None = None) -> Iterator[tuple[str, Tensor]]:
    """Every tensor with its name, as it is stored, one at a time. Raises CheckpointDamaged.

    at_once: how many share a mapping of their file, which goes with the last of them; None is all.
    """
    for file in weights.files:
        try:
            with safe_open(file, "pt") as tensors:
                names = list(weights.own_names(tensors.keys()).items())
            for first in range(0, len(names), at_once or max(1, len(names))):
                with safe_open(file, "pt") as tensors:
                    for theirs, ours in names[first:][:at_once]:
                        yield ours, tensors.get_tensor(theirs)
        except (SafetensorError, OSError) as error:
            raise CheckpointDamaged(f"{file} cannot be read: {error}.") from error


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
