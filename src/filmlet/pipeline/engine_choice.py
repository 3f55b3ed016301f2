"""Choice of a clip's engine, device and offload mode."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from filmlet.core.memory import OffloadMode, choose_offload_mode
from filmlet.core.shape import Change
from filmlet.engine import selection
from filmlet.engine.placement import (
    TORCH_OPTIMIZATIONS,
    Backend,
    Optimization,
    Placement,
    best_device,
    free_memory,
)
from filmlet.pipeline.engine_cache import EngineCache
from filmlet.pipeline.plan import Plan
from filmlet.settings import Settings


@dataclass(frozen=True)
class EngineChoice:
    """The chosen engine of a clip. changes: what of the settings is not done, and why."""

    placement: Placement
    changes: tuple[Change, ...] = ()


def choose_engine(
    plan: Plan, settings: Settings, engines: EngineCache, dtype: str | None, engine: str | None
) -> EngineChoice:
    """Choose what computes a plan whose files are all here.

    engines: one of them that fits is used as it is. dtype, engine: of an earlier attempt, None
    chooses. Raises InvalidRequest, MissingDependency.
    """
    device = best_device(settings.device)
    backend = engine or (Backend.TORCH if dtype else settings.engine)
    if backend == Backend.TORCH:
        placement = selection.torch_placement(device, dtype, cache=settings.cache)
        return _choose_torch(plan, settings, engines, placement)
    found = _openvino_placement(plan, settings, engines, dtype, backend == Backend.OPENVINO)
    if isinstance(found, Placement):
        return EngineChoice(found, tuple(_lost_optimizations(plan, settings, found)))
    placement = selection.torch_placement(device, dtype, found, settings.cache)
    choice = _choose_torch(plan, settings, engines, placement)
    if backend != Backend.OPENVINO:
        return choice
    change = Change("engine", Backend.OPENVINO, Backend.TORCH, found)
    return replace(choice, changes=(change, *choice.changes))


def _openvino_placement(
    plan: Plan, settings: Settings, engines: EngineCache, dtype: str | None, is_forced: bool
) -> Placement | str:
    """Return OpenVINO's placement, or why it does not compute this clip."""
    assert plan.files
    device = best_device(settings.device)
    reason = selection.why_not_openvino_model(plan.card, plan.parameters, settings)
    reason = reason or selection.why_not_openvino_clip(
        plan.files, device, plan.found_loras, is_forced
    )
    if reason:
        return reason
    placement = selection.openvino_placement(
        plan.card, plan.files, plan.parameters, settings, dtype
    )
    if not isinstance(placement, Placement):
        return placement
    offload = _choose_offload(plan, placement, settings, engines)
    if offload not in selection.OPENVINO_OFFLOAD_MODES:
        return selection.SEQUENTIAL_NEEDS_TORCH
    return replace(placement, offload=offload)


def _choose_torch(
    plan: Plan, settings: Settings, engines: EngineCache, placement: Placement
) -> EngineChoice:
    """Add offload mode and optimizations to torch's placement."""
    placement = replace(placement, offload=_choose_offload(plan, placement, settings, engines))
    used = frozenset(
        optimization
        for optimization in _requested_optimizations(settings)
        if not _why_not_optimization(plan, optimization, placement)
    )
    lost = tuple(_lost_optimizations(plan, settings, placement))
    return EngineChoice(replace(placement, optimizations=used), lost)


def _requested_optimizations(settings: Settings) -> list[Optimization]:
    return [name for name in TORCH_OPTIMIZATIONS if getattr(settings, name)]


def _why_not_optimization(
    plan: Plan, optimization: Optimization, placement: Placement
) -> str | None:
    assert plan.files
    family = plan.files.family
    return selection.why_not_optimization(optimization, placement, plan.has_loras, family)


def _lost_optimizations(plan: Plan, settings: Settings, placement: Placement) -> Iterator[Change]:
    for optimization in _requested_optimizations(settings):
        if reason := _why_not_optimization(plan, optimization, placement):
            yield Change(optimization.value, 1, 0, reason)


def _choose_offload(
    plan: Plan, placement: Placement, settings: Settings, engines: EngineCache
) -> OffloadMode:
    """Return the mode of the settings, of an engine that is here, or the fastest that fits."""
    assert plan.files
    if settings.offload:
        return OffloadMode(settings.offload)
    if mode := engines.offload_mode(plan.card, plan.files, placement):
        return mode
    estimates = plan.memory_estimates(placement.value_bytes)
    estimate = choose_offload_mode(estimates, free_memory(placement.device))
    return estimate.offload if estimate else OffloadMode.SEQUENTIAL
