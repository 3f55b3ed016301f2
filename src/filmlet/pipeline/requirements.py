"""What a clip needs of this machine, checked before gigabytes of its model are fetched."""

from filmlet.core.memory import OffloadMode
from filmlet.engine import selection
from filmlet.engine.placement import Backend, best_device, has_torch, total_memory
from filmlet.errors import MissingDependency, OutOfMemory
from filmlet.models import disk_usage, hub_cache
from filmlet.pipeline.plan import Plan
from filmlet.settings import Settings

BYTES_PER_VALUE = 2  # of the leanest dtype that torch computes in


def check_requirements(plan: Plan, settings: Settings) -> None:
    """Check that this machine has the libraries and, for a model to be fetched, the memory.

    Imports torch nowhere. Raises MissingDependency, OutOfMemory, and InvalidRequest for a device
    that is not there.
    """
    if not has_torch() and (reason := _why_torch(plan, settings)):
        raise MissingDependency(f"This clip takes torch ({reason}): pip install 'filmlet[torch]'")
    if plan.files is None and not settings.offload:
        _check_memory(plan)


def check_disk(plan: Plan) -> None:
    """Check that the disk has room for what is to be fetched. Raises DiskFull."""
    if missing := missing_bytes(plan):
        hub_cache.check_free_disk(missing)


def missing_bytes(plan: Plan) -> int:
    """Return the bytes of the model that are not on this machine."""
    return 0 if plan.files else max(0, plan.card.size_bytes - disk_usage(plan.card))


def _why_torch(plan: Plan, settings: Settings) -> str | None:
    """Return why OpenVINO cannot make the clip."""
    if settings.engine == Backend.TORCH:
        return "FILMLET_ENGINE chooses it"
    reason = selection.why_not_openvino_model(plan.card, plan.parameters, settings)
    device = best_device(settings.device)
    return reason or selection.why_not_openvino_device(device, has_loras=plan.has_loras)


def _check_memory(plan: Plan) -> None:
    """Raises OutOfMemory where all memory of the machine is too little for the leanest mode."""
    estimates = plan.memory_estimates(BYTES_PER_VALUE)
    least = next(e for e in estimates if e.offload is OffloadMode.SEQUENTIAL)
    memory = total_memory()
    if least.bytes > memory:
        raise OutOfMemory(
            f"{plan.card.name} takes {least.bytes / 1e9:.1f} GB of memory in its leanest mode, and "
            f"this machine has {memory / 1e9:.1f} GB. Choose a smaller or shorter clip or another "
            "model; FILMLET_OFFLOAD=sequential tries it all the same."
        )
