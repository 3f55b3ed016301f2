"""What computes on the CPU: torch, or OpenVINO where it is installed, faster and right."""

from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from filmlet.budget import Hold
from filmlet.card import Files, ModelCard
from filmlet.engine.loading import Weights
from filmlet.engine.placement import Placement
from filmlet.lora import Adapter

SMALL = 4_000_000  # bytes of a transformer that computes sooner than it is compiled


def choose(
    card: ModelCard,
    files: Files,
    placement: Placement,
    wanted: str,
    cache: Path,
    loras: Sequence[Adapter],
) -> Placement:
    """The placement with the engine that is wanted: `torch`, `openvino`, or the best for `auto`.

    Where it is not what was wanted, `reason` says why.
    """
    if wanted == "torch":
        return placement
    against = _against(files, placement, wanted, loras)
    if against is None:
        made = import_module("filmlet.engine.compiled.made")
        found = made.choose(card, files, cache, wanted == "openvino")
        if not isinstance(found, str):
            return replace(placement, compiled=found, reason="OpenVINO is installed")
        against = found
    return replace(placement, reason=f"{placement.reason}; not OpenVINO: {against}")


def _against(
    files: Files, placement: Placement, wanted: str, loras: Sequence[Adapter]
) -> str | None:
    """Why not OpenVINO, as far as can be told without it."""
    if placement.device != "cpu":
        return "it is for CPUs here"
    if not find_spec("openvino"):
        return "it is not installed: pip install 'filmlet[fast]'"
    if loras:
        return "LoRAs are merged into torch's weights"
    if placement.hold not in (Hold.ALL, Hold.TURNS):
        return "a model that is brought in layers is torch's"
    if wanted == "auto" and Weights("transformer", files.transformer).bytes < SMALL:
        return "a model this small computes sooner than it is compiled"
    return None
