"""From files to modules: built without memory, filled from .safetensors, checked by name."""

import re
from collections.abc import Iterator

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

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
    lent: nn.Module | None = None,
) -> Iterator[int]:
    """Give a module on the meta device its weights, on the device and in the dtype it computes in.

    Those of the blocks `lent` stay as they are in the file until they are used. Yields the bytes
    that were read, a piece at a time: whoever waits may stop here. Raises CheckpointCorrupt that
    names what is missing, too much or of another shape.
    """
    _check_keys(module, weights)
    block_weight_ids = {id(weight) for weight in lent.parameters()} if lent else set()
    stay = {name for name, weight in module.named_parameters() if id(weight) in block_weight_ids}
    table: dict[str, Tensor] = {}
    dtype, done = torch_dtype(placement), 0
    is_converted = (
        placement.offload != OffloadMode.SEQUENTIAL
        and weights.bytes != weights.values * dtype.itemsize
    )
    for name, tensor in iter_tensors(weights, TENSORS_PER_MAPPING if is_converted else None):
        is_lent, is_far = name in stay, placement.offload == OffloadMode.SEQUENTIAL
        if is_lent:
            table[name] = tensor if is_far else tensor.to(placement.device)
        else:
            table[name] = tensor.to(placement.device, dtype)
        done += 0 if is_lent else tensor.nbytes
        if done >= PROGRESS_BYTES:
            yield done
            done = 0
    yield done
    module.load_state_dict(table, strict=False, assign=True)
    tie = getattr(module, "tie_weights", None)
    if callable(tie):
        tie()
    missing = [n for n, t in module.state_dict().items() if t.is_meta]
    if missing:
        raise CheckpointCorrupt(f"{weights.path}: no weights for {_shorten(missing)}.")
    module.requires_grad_(False).eval()
    if lent:
        # A CPU would cast ahead with the cores that it computes with, and has the less memory.
        offload_blocks(lent, placement, is_ahead=placement.device != "cpu")


def iter_tensors(
    weights: CheckpointWeights, at_once: int | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor with its name, as it is stored, one at a time. Raises CheckpointCorrupt.

    at_once: how many share a mapping of their file, which goes with the last of them; None is all.
    """
    for file in weights.files:
        try:
            with safe_open(file, "pt") as tensors:
                names = list(weights.to_diffusers_keys(tensors.keys()).items())
            for first in range(0, len(names), at_once or max(1, len(names))):
                with safe_open(file, "pt") as tensors:
                    for theirs, ours in names[first:][:at_once]:
                        yield ours, tensors.get_tensor(theirs)
        except (SafetensorError, OSError) as error:
            raise CheckpointCorrupt(f"{file} cannot be read: {error}.") from error


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
