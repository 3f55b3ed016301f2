"""What computes a clip: OpenVINO on a CPU where it can, torch everywhere else."""

from collections.abc import Generator, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from filmlet.budget import Hold, Machine
from filmlet.card import Files, ModelCard
from filmlet.engine.engine import Engine
from filmlet.engine.placement import (
    Library,
    Placement,
    best_device,
    free_memory,
    has_torch,
    processor,
)
from filmlet.engine.weights import Weights
from filmlet.errors import LibraryMissing
from filmlet.events import Progress
from filmlet.lora import Adapter

SMALL = 4_000_000  # bytes of a transformer that torch computes sooner than it is compiled
HELD = (Hold.ALL, Hold.TURNS)  # how OpenVINO holds a model
LAYERS = "a model that is brought in layers is torch's"


def by_openvino(
    card: ModelCard, files: Files, cache: Path, dtype: str | None = None
) -> Placement | str:
    """OpenVINO's placement of a checkpoint on the CPU, or why it cannot compute it.

    dtype: of an earlier attempt. cache: folder of what is compiled.
    """
    found: Placement | str = import_module("filmlet.engine.compiled.engine").choose(
        card, files, cache, dtype
    )
    return found


def against_openvino(
    files: Files, device: str, loras: Sequence[Adapter], has_two_stages: bool, is_forced: bool
) -> str | None:
    """Why not OpenVINO, as far as can be told without it."""
    if device != "cpu":
        return "OpenVINO is for CPUs here"
    if not find_spec("openvino"):
        return "OpenVINO is not installed"
    if loras:
        return "LoRAs are merged into torch's weights"
    if has_two_stages:
        return "the second stage's upsampler is torch's"
    is_small = Weights("transformer", files.transformer).bytes < SMALL
    if is_small and has_torch() and not is_forced:
        return "a model this small computes sooner than it is compiled"
    return None


def by_torch(device: str, dtype: str | None = None, against: str | None = None) -> Placement:
    """torch's placement on a device that is there. dtype: of an earlier attempt.

    against: why not OpenVINO. Raises LibraryMissing.
    """
    if not has_torch():
        why = f" ({against})" if against else ""
        raise LibraryMissing(f"This clip takes torch{why}: pip install 'filmlet[torch]'")
    found: Placement = import_module("filmlet.engine.probing").choose(device, dtype)
    return found


def leaner(placement: Placement) -> Placement | None:
    """One rung down the ladder, where there is one."""
    hold = placement.hold.leaner
    if hold is None:
        return None
    if placement.library is Library.TORCH or hold in HELD:
        return replace(placement, hold=hold)
    return replace(by_torch(placement.device), hold=hold) if has_torch() else None


def load(card: ModelCard, files: Files, placement: Placement) -> Generator[Progress, None, Engine]:
    """A checkpoint, ready; Progress counts kilobytes. Raises CheckpointDamaged, NotFinite."""
    match placement.library:
        case Library.TORCH:
            module = import_module("filmlet.engine.ltx")
        case Library.OPENVINO:
            module = import_module("filmlet.engine.compiled.engine")
    engine: Engine = yield from module.load(card, files, placement)
    return engine


def machine(device: str | None = None) -> Machine:
    """This machine, as a model finds it. Raises InvalidRequest for a device that is not there."""
    device = best_device(device)
    if device == "cpu" and find_spec("openvino"):
        dtype: str = import_module("filmlet.engine.compiled.running").best_dtype()
        value_bytes = 4
    else:
        placement = by_torch(device)
        dtype, value_bytes = placement.dtype, placement.value_bytes
    return Machine(device, processor(device), free_memory(device), dtype, value_bytes)
