"""Choice of the engine of a clip: OpenVINO on a CPU where it can, torch everywhere else."""

import shutil
from collections.abc import Generator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from filmlet.core import cpu
from filmlet.core.events import Progress, Stage
from filmlet.core.lora import LoraAdapter
from filmlet.core.memory import INT8_BYTES, DeviceInfo, OffloadMode
from filmlet.core.model_card import ComponentFiles, Components, ModelCard, ModelFamily
from filmlet.engine.base import KILOBYTE, Engine, to_kilobytes
from filmlet.engine.configs import check_components
from filmlet.engine.placement import (
    BYTES_PER_VALUE,
    Backend,
    Optimization,
    Placement,
    best_device,
    device_name,
    free_memory,
    has_torch,
)
from filmlet.engine.state_dict import CheckpointWeights
from filmlet.errors import MissingDependency, NonFiniteValues, NotSupported
from filmlet.settings import Settings

TORCH_ONLY_BELOW_BYTES = (
    4_000_000  # bytes of a transformer that torch computes sooner than it is compiled
)
OPENVINO_MAX_BYTES = 1_000_000_000  # bytes of all in float32 of a model that is compiled at once:
# that takes up to four times as many. Others are compiled block by block.
BLOCKWISE_MAX_PARAMETERS = 4e9  # of a transformer in 8 bits whose graphs are all in the cache
OPENVINO_OFFLOAD_MODES = (
    OffloadMode.NONE,
    OffloadMode.MODEL,
)  # how OpenVINO holds a model, and torch one that is compiled
COMPILERS = ("c++", "g++", "clang++")  # that torch looks for
SEQUENTIAL_NEEDS_TORCH = "sequential offload needs the torch backend"


def openvino_placement(
    card: ModelCard,
    files: ComponentFiles,
    parameters: Components[float],
    settings: Settings,
    dtype: str | None = None,
) -> Placement | str:
    """OpenVINO's placement of a checkpoint on the CPU, or why it cannot compute it.

    dtype: of an earlier attempt.
    """
    from filmlet.engine.openvino.engine import choose_blockwise_placement, choose_placement

    if is_blockwise(parameters):
        return choose_blockwise_placement(card, files, settings)
    return choose_placement(card, files, settings, dtype)


def is_blockwise(parameters: Components[float]) -> bool:
    """Return whether a model is too large for OpenVINO to compile it at once."""
    values = sum(count for _, count in parameters.present())
    return values * BYTES_PER_VALUE["float32"] > OPENVINO_MAX_BYTES


def why_not_openvino_model(
    card: ModelCard, parameters: Components[float], settings: Settings
) -> str | None:
    """Why a model is torch's on this CPU, whether or not its files are here."""
    if card.family is ModelFamily.LTX2:
        return "OpenVINO computes LTX-Video alone here"
    if (
        card.refine_schedule
    ):  # its drafts, too: what finishes one goes on with the engine that began it
        return "the second stage's upsampler needs torch"
    return _why_not_blockwise(parameters, settings) if is_blockwise(parameters) else None


def _why_not_blockwise(parameters: Components[float], settings: Settings) -> str | None:
    if parameters.transformer > BLOCKWISE_MAX_PARAMETERS:
        return "a model this large takes too much memory to be compiled"
    if not settings.int8:
        return "a model this large is compiled in 8 bits, and FILMLET_INT8 forbids them"
    if "avx2" not in cpu.cpu_flags():
        return "a model this large is compiled in 8 bits, and this CPU has no AVX2"
    return None


def machine_for_model(
    machine: DeviceInfo, card: ModelCard, parameters: Components[float], settings: Settings
) -> DeviceInfo:
    """Return a machine, as `device_info` describes it, as it computes a model."""
    if machine.device != "cpu":
        return machine
    if settings.engine == Backend.TORCH or why_not_openvino_model(card, parameters, settings):
        return in_float32(machine)
    return replace(machine, bytes_per_value=INT8_BYTES) if is_blockwise(parameters) else machine


def why_not_openvino_device(device: str, *, has_loras: bool) -> str | None:
    """Why not OpenVINO on a device, whether or not a model's files are here."""
    if device != "cpu":
        return "OpenVINO is for CPUs here"
    if not find_spec("openvino"):
        return "OpenVINO is not installed"
    return "LoRAs are merged into torch's weights" if has_loras else None


def why_not_openvino_clip(
    files: ComponentFiles, device: str, loras: Sequence[LoraAdapter], is_forced: bool
) -> str | None:
    """Why not OpenVINO for this clip, as far as can be told without it."""
    if reason := why_not_openvino_device(device, has_loras=bool(loras)):
        return reason
    is_small = CheckpointWeights.from_files(files, "transformer").bytes < TORCH_ONLY_BELOW_BYTES
    if is_small and has_torch() and not is_forced:
        return "compiling takes longer than computing for a model this small"
    return None


def torch_placement(
    device: str, dtype: str | None = None, reason: str | None = None, cache: Path | None = None
) -> Placement:
    """torch's placement on a device that is there. dtype: of an earlier attempt.

    reason: why not OpenVINO. Raises MissingDependency.
    """
    if not has_torch():
        why = f" ({reason})" if reason else ""
        raise MissingDependency(f"This clip takes torch{why}: pip install 'filmlet[torch]'")
    from filmlet.engine.torch.dtype import choose_dtype

    return choose_dtype(device, dtype, cache)


def why_not_optimization(
    optimization: Optimization,
    placement: Placement,
    has_loras: bool,
    family: ModelFamily,
) -> str | None:
    """Return why an optimization is not used for a clip, None where it is."""
    device = placement.device
    if placement.backend is Backend.OPENVINO:
        return "this optimization is for torch, and OpenVINO computes"
    if placement.offload not in OPENVINO_OFFLOAD_MODES:
        return "it is not available with this offload mode"
    if family is ModelFamily.LTX2 and optimization is not Optimization.FP8:
        return "this optimization is for LTX-Video, not for LTX-2"
    match optimization:
        case Optimization.COMPILE if device == "cpu" and not any(map(shutil.which, COMPILERS)):
            return f"there is no C++ compiler, {', '.join(COMPILERS)}"
        case Optimization.CUDA_GRAPHS if not device.startswith("cuda"):
            return "CUDA graphs need a GPU"
        case Optimization.FP8 if has_loras:
            return "LoRAs are merged into weights of 16 bits"
        case Optimization.FP8:
            from filmlet.engine.torch.fp8 import why_not_fp8

            return why_not_fp8(device)
    return None


def with_more_offload(placement: Placement) -> Placement | None:
    """Return the placement with the next offload mode, or None after the last."""
    hold = placement.offload.next_lower
    if hold is None:
        return None
    if placement.backend is Backend.TORCH or hold in OPENVINO_OFFLOAD_MODES:
        optimizations = (
            placement.optimizations if hold in OPENVINO_OFFLOAD_MODES else frozenset[Optimization]()
        )
        return replace(placement, offload=hold, optimizations=optimizations)
    if not has_torch():
        return None
    return replace(torch_placement(placement.device, cache=placement.cache), offload=hold)


def in_full_precision(placement: Placement, reason: str) -> Placement:
    """Return the placement with nothing rounded more than float32 does. Raises MissingDependency.

    A model that OpenVINO computes in 8 bits alone goes to torch, which takes no more memory in the
    leanest offload mode.
    """
    if placement.is_blockwise:
        torchs = torch_placement(placement.device, "float32", reason, placement.cache)
        return replace(torchs, offload=OffloadMode.SEQUENTIAL, reason=reason)
    exact = placement.optimizations - {Optimization.INT8}
    return replace(placement, dtype="float32", optimizations=exact, reason=reason)


def load_engine(
    card: ModelCard, files: ComponentFiles, placement: Placement
) -> Generator[Progress, None, Engine]:
    """Load an engine; Progress counts kilobytes. Raises CheckpointCorrupt, NonFiniteValues.

    Where all of it has no room at once, its components are read when they are needed.
    """
    check_components(files)
    engine = _create_engine(card, files, placement)
    names = engine.core_components if placement.offload is OffloadMode.NONE else ()
    done, total = 0, engine.bytes_to_load(*names)
    yield Progress(Stage.LOAD, 0, to_kilobytes(total))
    for read in engine.load_components(*names):
        done = min(done + read, total)
        yield Progress(Stage.LOAD, done // KILOBYTE, to_kilobytes(total))
    yield Progress(Stage.LOAD, to_kilobytes(total), to_kilobytes(total))
    return engine


def export(
    card: ModelCard, files: ComponentFiles, parameters: Components[float], settings: Settings
) -> Generator[int, None, Placement]:
    """Compile all of a checkpoint for OpenVINO into the cache; yields bytes that were read.

    What is there already is not compiled again. Raises NotSupported where it is torch's.
    """
    reason = why_not_openvino_model(card, parameters, settings) or why_not_openvino_clip(
        files, "cpu", (), is_forced=True
    )
    placement = reason or openvino_placement(card, files, parameters, settings)
    if isinstance(placement, str):
        raise NotSupported(f"{card.name} is not exported: {placement}.", param="model")
    check_components(files)
    engine = _create_engine(card, files, replace(placement, offload=OffloadMode.MODEL))
    try:
        for name in (*engine.core_components, "encoder"):
            yield from engine.load_components(name)
    except NonFiniteValues:  # a check found it to be too far off, and this is remembered
        if placement.is_full_precision:
            raise
        placement = yield from export(card, files, parameters, settings)
    return placement


def _create_engine(card: ModelCard, files: ComponentFiles, placement: Placement) -> Engine:
    """Return the placement's engine, with nothing read yet."""
    if card.family is ModelFamily.LTX2:
        from filmlet.engine.torch.ltx2.engine import create_engine as create_ltx2_engine

        return create_ltx2_engine(card, files, placement)
    if placement.backend is Backend.TORCH:
        from filmlet.engine.torch.engine import create_engine as create_torch_engine

        return create_torch_engine(card, files, placement)
    from filmlet.engine.openvino.engine import create_engine as create_openvino_engine

    return create_openvino_engine(card, files, placement)


def device_info(device: str | None = None, is_torchs: bool = False) -> DeviceInfo:
    """This machine, as a model finds it, or one that torch computes.

    Raises InvalidRequest for a device that is not there, MissingDependency.
    """
    device = best_device(device)
    if device == "cpu" and find_spec("openvino") and not is_torchs:
        from filmlet.engine.openvino.runner import best_dtype

        dtype = best_dtype()
        value_bytes = BYTES_PER_VALUE["float32"]  # of what it is given
    else:
        placement = torch_placement(device)
        dtype, value_bytes = placement.dtype, placement.value_bytes
    return DeviceInfo(device, device_name(device), free_memory(device), dtype, value_bytes)


def in_float32(machine: DeviceInfo) -> DeviceInfo:
    """Return the machine for a model of torch's on a CPU, whose dtype nobody has measured."""
    if machine.device != "cpu":
        return machine
    return replace(machine, dtype="float32", bytes_per_value=BYTES_PER_VALUE["float32"])
