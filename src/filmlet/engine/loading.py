"""From files to modules: built without memory, filled from .safetensors, checked by name."""

import re
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from filmlet.engine.placement import Placement
from filmlet.errors import CheckpointDamaged

Module = TypeVar("Module", bound=nn.Module)


def read_weights(component: Path) -> dict[str, Tensor]:
    """Every tensor of a component's .safetensors files, under its name."""
    weights: dict[str, Tensor] = {}
    for file in sorted(component.glob("*.safetensors")):
        try:
            weights |= load_file(file)
        except (SafetensorError, OSError) as error:
            raise CheckpointDamaged(f"{file} cannot be read: {error}.") from error
    return weights


def fill(module: Module, component: Path, placement: Placement) -> Module:
    """Give a module on the meta device its weights, on the device and in the dtype it computes in.

    Raises CheckpointDamaged that names what is missing, too much or of another shape.
    """
    weights = {
        name: tensor.to(placement.device, placement.dtype)
        for name, tensor in read_weights(component).items()
    }
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
    return module.requires_grad_(False).eval()


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(sorted(names)[:3]) + more


def on_meta(build: type[nn.Module], config: dict[str, object]) -> nn.Module:
    """A diffusers module from its config, without memory for its weights."""
    with torch.device("meta"):
        return build.from_config(config)  # type: ignore[attr-defined]
