"""Which engine computes a clip, on which device, and how much of the model is in memory."""

from dataclasses import replace

from filmlet.core.lora import LoraAdapter
from filmlet.core.memory import OffloadMode
from filmlet.core.memory import choose_offload_mode as fitting
from filmlet.core.model_card import ComponentFiles
from filmlet.engine import selection
from filmlet.engine.placement import (
    TORCH_OPTIMIZATIONS,
    Backend,
    Optimization,
    Placement,
    best_device,
    free_memory,
)
from filmlet.pipeline.engine_cache import loaded
from filmlet.pipeline.plan import Plan
from filmlet.settings import Settings


def choose_placement(
    plan: Plan,
    files: ComponentFiles,
    loras: tuple[LoraAdapter, ...],
    settings: Settings,
    begun: tuple[str | None, str | None],
) -> tuple[Placement, str | None]:
    """Where the clip is made, and why not by OpenVINO if that is not wanted away.

    begun: dtype and engine of an earlier attempt. Raises InvalidRequest, MissingDependency.
    """
    device, (dtype, engine) = best_device(settings.device), begun
    backend = engine or (Backend.TORCH if dtype else settings.engine)
    reason = None
    if backend != Backend.TORCH:
        is_forced = backend == Backend.OPENVINO
        reason = selection.why_not_openvino_model(plan.card, plan.parameters)
        reason = reason or selection.why_not_openvino_clip(files, device, loras, is_forced)
    if backend != Backend.TORCH and not reason:
        chosen = selection.openvino_placement(
            plan.card, files, settings.cache, settings.int8 > 0, dtype
        )
        if isinstance(chosen, Placement):
            hold = _choose_offload_mode(plan, files, chosen, settings)
            if hold in selection.OPENVINO_OFFLOAD_MODES:
                return replace(chosen, offload=hold), None
            chosen = selection.SEQUENTIAL_NEEDS_TORCH
        reason = chosen
    placement = selection.torch_placement(device, dtype, reason)
    placement = replace(placement, cache=settings.cache)
    placement = replace(placement, offload=_choose_offload_mode(plan, files, placement, settings))
    used = (
        x
        for x in requested_optimizations(settings)
        if not selection.why_not_optimization(x, placement, loras)
    )
    return replace(placement, optimizations=frozenset(used)), reason


def requested_optimizations(settings: Settings) -> list[Optimization]:
    """Levers of torch that are asked for."""
    return [lever for lever in TORCH_OPTIMIZATIONS if getattr(settings, lever)]


def _choose_offload_mode(
    plan: Plan, files: ComponentFiles, placement: Placement, settings: Settings
) -> OffloadMode:
    """How the model is held: as the settings say, as it is, or as there is memory for."""
    if settings.offload:
        return OffloadMode(settings.offload)
    for card, where, cached_placement in loaded:
        alike = replace(
            cached_placement, offload=placement.offload, optimizations=placement.optimizations
        )
        if (card, where, alike) == (plan.card, files, placement):
            return cached_placement.offload
    estimates = plan.memory_estimates(placement.value_bytes)
    need = fitting(estimates, free_memory(placement.device))
    return need.offload if need else OffloadMode.SEQUENTIAL
