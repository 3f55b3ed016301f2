"""The placement that a clip falls back to after a failed run: float32, or more offload.

Within one attempt of a job; how often a job is attempted stands in `jobs/claimed_job.py`.
"""

from dataclasses import replace

from filmlet.core.shape import Change
from filmlet.engine import selection
from filmlet.engine.placement import Placement, is_out_of_memory
from filmlet.errors import NonFiniteValues, OutOfMemory
from filmlet.pipeline.prepare import PreparedClip


def fall_back_to_float32(clip: PreparedClip, error: NonFiniteValues, emitted: int) -> PreparedClip:
    """Return the clip in float32. emitted: frames that somebody has already.

    Raises NonFiniteValues that says what to do where float32 cannot help.
    """
    if emitted or clip.placement.is_full_precision:
        loras = " and ".join(adapter.label for adapter in clip.loras if adapter.strength)
        with_loras = f" with {loras}" if loras else ""
        raise NonFiniteValues(
            f"{error} {clip.plan.card.name}{with_loras} is damaged or its settings are too far "
            f"off; it was run in {clip.placement.dtype} and no clip was written."
        ) from error
    placement = selection.in_full_precision(clip.placement, str(error))
    return _with_placement(clip, placement, str(error))


def fall_back_to_more_offload(clip: PreparedClip, error: Exception) -> PreparedClip:
    """Return the clip with one more step of offload, after memory ran out.

    Raises `error` if it is another one, OutOfMemory where less memory does not do.
    """
    if not is_out_of_memory(error):
        raise error
    placement = selection.with_more_offload(clip.placement)
    if placement is None:
        shape = clip.effective.shape
        raise OutOfMemory(
            f"{clip.plan.card.name} has too little memory on {clip.placement.device} for "
            f"{shape.width}x{shape.height} and {shape.frames} frames; make less of either."
        ) from error
    return _with_placement(clip, placement, "memory ran out while it was made")


def _with_placement(clip: PreparedClip, placement: Placement, reason: str) -> PreparedClip:
    """Return the clip with another placement, and the reason among its changes."""
    before, optimizations = clip.effective, tuple(sorted(placement.optimizations))
    changes = [
        Change(name, getattr(before, name), value, reason)
        for name, value in (
            ("dtype", placement.dtype),
            ("offload", placement.offload.value),
            ("engine", placement.backend.value),
        )
        if getattr(before, name) != value
    ]
    lost = [name for name in before.optimizations if name not in optimizations]
    changes += [Change(name, 1, 0, reason) for name in lost]
    effective = replace(
        before,
        dtype=placement.dtype,
        offload=placement.offload.value,
        engine=placement.backend.value,
        optimizations=optimizations,
        changes=(*before.changes, *changes),
    )
    return replace(clip, placement=placement, effective=effective)
