"""From files to modules: built without memory, filled from .safetensors, checked by name."""

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from filmlet.engine.placement import Placement
from filmlet.errors import CheckpointDamaged

PIECE = 64 * 2**20  # bytes between two chances to stop


def read_weights(component: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a component's .safetensors files with its name, one at a time."""
    for file in sorted(component.glob("*.safetensors")):
        try:
            with safe_open(file, "pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - not a mapping
                    yield name, tensors.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointDamaged(f"{file} cannot be read: {error}.") from error


def weigh(component: Path) -> int:
    """Bytes of a component's weights."""
    return sum(file.stat().st_size for file in component.glob("*.safetensors"))


def fill(module: nn.Module, component: Path, placement: Placement) -> Iterator[int]:
    """Give a module on the meta device its weights, on the device and in the dtype it computes in.

    Yields the bytes that were read, a piece at a time: whoever waits may stop here.
    Raises CheckpointDamaged that names what is missing, too much or of another shape.
    """
    weights: dict[str, Tensor] = {}
    read = 0
    for name, tensor in read_weights(component):
        weights[name] = tensor.to(placement.device, placement.dtype)
        read += tensor.nbytes
        if read >= PIECE:
            yield read
            read = 0
    yield read
    wanted = module.state_dict()
    wrong = [n for n, t in weights.items() if n in wanted and wanted[n].shape != t.shape]
    if wrong:
        raise CheckpointDamaged(f"{component}: wrong shape of {_some(wrong)}.")
    ignored = getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()
    surplus = [n for n in weights if n not in wanted and not any(re.search(i, n) for i in ignored)]
    if surplus:
        raise CheckpointDamaged(f"{component}: config.json has no place for {_some(surplus)}.")
    module.load_state_dict(weights, strict=False, assign=True)
    tie = getattr(module, "tie_weights", None)
    if callable(tie):
        tie()
    missing = [n for n, t in module.state_dict().items() if t.is_meta]
    if missing:
        raise CheckpointDamaged(f"{component}: no weights for {_some(missing)}.")
    module.requires_grad_(False).eval()


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(sorted(names)[:3]) + more


def on_meta(build: type[nn.Module], config: dict[str, object]) -> nn.Module:
    """A diffusers module from its config, without memory for its weights."""
    with torch.device("meta"):
        return build.from_config(config)  # type: ignore[attr-defined]
