"""What computes a clip: OpenVINO on a CPU where it can, torch everywhere else."""

import shutil
from collections.abc import Generator, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from filmlet.core.events import Progress, Stage
from filmlet.core.lora import Adapter
from filmlet.core.memory import Hold, Machine
from filmlet.core.model_card import Components, Files, ModelCard
from filmlet.engine.base import KILOBYTE, Engine, kilobytes
from filmlet.engine.configs import check_components
from filmlet.engine.placement import (
    BYTES,
    Lever,
    Library,
    Placement,
    best_device,
    free_memory,
    has_torch,
    processor,
)
from filmlet.engine.state_dict import Weights
from filmlet.errors import LibraryMissing, NotFinite, NotOffered

SMALL = 4_000_000  # bytes of a transformer that torch computes sooner than it is compiled
LARGEST = 1_000_000_000  # bytes of all in float32: to compile it takes up to four times as many
HELD = (Hold.ALL, Hold.TURNS)  # how OpenVINO holds a model, and torch one that is compiled
COMPILERS = ("c++", "g++", "clang++")  # that torch looks for
LAYERS = "a model that is brought in layers is torch's"


def by_openvino(
    card: ModelCard, files: Files, cache: Path, allow_int8: bool, dtype: str | None = None
) -> Placement | str:
    """OpenVINO's placement of a checkpoint on the CPU, or why it cannot compute it.

    cache: folder of what is compiled. allow_int8: products may be in 8 bits. dtype: of an earlier
    attempt.
    """
    found: Placement | str = import_module("filmlet.engine.openvino.engine").choose(
        card, files, cache, allow_int8, dtype
    )
    return found


def torchs(card: ModelCard, parameters: Components[float]) -> str | None:
    """Why a model is torch's on every CPU, whether or not its files are here."""
    if card.refine:  # its drafts, too: what finishes one goes on with the engine that began it
        return "the second stage's upsampler is torch's"
    if sum(count for _, count in parameters.there()) * BYTES["float32"] > LARGEST:
        return "a model this large takes too much memory to be compiled"
    return None


def against_openvino(
    files: Files, device: str, loras: Sequence[Adapter], is_forced: bool
) -> str | None:
    """Why not OpenVINO for this clip, as far as can be told without it."""
    if device != "cpu":
        return "OpenVINO is for CPUs here"
    if not find_spec("openvino"):
        return "OpenVINO is not installed"
    if loras:
        return "LoRAs are merged into torch's weights"
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
    found: Placement = import_module("filmlet.engine.torch.dtype").choose(device, dtype)
    return found


def against(lever: Lever, placement: Placement, loras: Sequence[Adapter]) -> str | None:
    """Why a lever is not used for a clip, if it is not."""
    device = placement.device
    if placement.library is Library.OPENVINO:
        return "OpenVINO has levers of its own"
    if placement.hold not in HELD:
        return "the weights of blocks come and go"
    match lever:
        case Lever.COMPILE if device == "cpu" and not any(map(shutil.which, COMPILERS)):
            return f"there is no C++ compiler, {', '.join(COMPILERS)}"
        case Lever.GRAPHS if not device.startswith("cuda"):
            return "graphs are a GPU's"
        case Lever.FP8 if loras:
            return "LoRAs are merged into weights of 16 bits"
        case Lever.FP8:
            why: str | None = import_module("filmlet.engine.torch.fp8").against(device)
            return why
    return None


def leaner(placement: Placement) -> Placement | None:
    """One rung down the ladder, where there is one."""
    hold = placement.hold.leaner
    if hold is None:
        return None
    if placement.library is Library.TORCH or hold in HELD:
        levers = placement.levers if hold in HELD else frozenset[Lever]()
        return replace(placement, hold=hold, levers=levers)
    return replace(by_torch(placement.device), hold=hold) if has_torch() else None


def load(card: ModelCard, files: Files, placement: Placement) -> Generator[Progress, None, Engine]:
    """A checkpoint, ready; Progress counts kilobytes. Raises CheckpointDamaged, NotFinite.

    Where all of it has no room at once, its components are read when they are needed.
    """
    check_components(files)
    engine: Engine = _module(placement).begin(card, files, placement)
    names = engine.parts_of_every_clip if placement.hold is Hold.ALL else ()
    done, total = 0, engine.weigh(*names)
    yield Progress(Stage.LOAD, 0, kilobytes(total))
    for read in engine.bring(*names):
        done = min(done + read, total)
        yield Progress(Stage.LOAD, done // KILOBYTE, kilobytes(total))
    yield Progress(Stage.LOAD, kilobytes(total), kilobytes(total))
    return engine


def export(
    card: ModelCard, files: Files, parameters: Components[float], cache: Path, allow_int8: bool
) -> Generator[int, None, Placement]:
    """Compile all of a checkpoint for OpenVINO into the cache; yields bytes that were read.

    What is there already is not compiled again. Raises NotOffered where it is torch's.
    """
    against = torchs(card, parameters) or against_openvino(files, "cpu", (), is_forced=True)
    found = against or by_openvino(card, files, cache, allow_int8)
    if isinstance(found, str):
        raise NotOffered(f"{card.name} is not exported: {found}.", param="model")
    check_components(files)
    engine: Engine = _module(found).begin(card, files, replace(found, hold=Hold.TURNS))
    try:
        for name in (*engine.parts_of_every_clip, "encoder"):
            yield from engine.bring(name)
    except NotFinite:  # a check found it to be too far off, and this is remembered
        if found.is_exact:
            raise
        found = yield from export(card, files, parameters, cache, allow_int8)
    return found


def _module(placement: Placement) -> ModuleType:
    """Of the engine that computes."""
    is_torch = placement.library is Library.TORCH
    return import_module(f"filmlet.engine.{'torch.engine' if is_torch else 'openvino.engine'}")


def machine(device: str | None = None, is_torchs: bool = False) -> Machine:
    """This machine, as a model finds it, or one that torch computes.

    Raises InvalidRequest for a device that is not there, LibraryMissing.
    """
    device = best_device(device)
    if device == "cpu" and find_spec("openvino") and not is_torchs:
        dtype: str = import_module("filmlet.engine.openvino.runner").best_dtype()
        value_bytes = BYTES["float32"]  # of what it is given
    else:
        placement = by_torch(device)
        dtype, value_bytes = placement.dtype, placement.value_bytes
    return Machine(device, processor(device), free_memory(device), dtype, value_bytes)


def at_most(machine: Machine) -> Machine:
    """The same for a model that torch computes on a CPU, whose dtype nobody has measured yet."""
    if machine.device != "cpu":
        return machine
    return replace(machine, dtype="float32", value_bytes=BYTES["float32"])
