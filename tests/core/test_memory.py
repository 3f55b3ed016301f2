"""What clips of LTX-2 take, by how the model is held."""

import pytest

from filmlet.core.memory import MemoryEstimate, OffloadMode, choose_offload_mode
from filmlet.core.request import build_request
from filmlet.models import REGISTRY
from filmlet.pipeline.plan import make_plan

GB = 10**9


def estimates(model: str, value_bytes: int, size: str = "768x512") -> dict[OffloadMode, float]:
    plan = make_plan(build_request("a ball", model=model, size=size))
    return {e.offload: e.bytes / GB for e in plan.memory_estimates(value_bytes)}


@pytest.mark.parametrize("model", [name for name, card in REGISTRY.items() if card.version])
@pytest.mark.parametrize("value_bytes", [2, 4])
def test_each_mode_of_ltx2_holds_its_largest_parts(model: str, value_bytes: int) -> None:
    card, found = REGISTRY[model], estimates(model, value_bytes)
    assert card.parameters
    sizes = {name: count * value_bytes / GB for name, count in card.parameters.present()}
    sizes["vocoder"] *= 4 / value_bytes  # float32 always
    assert found[OffloadMode.NONE] > sum(sizes.values())
    # One after the other: neither the text encoder beside the transformer, nor less than either.
    assert sizes["transformer"] < found[OffloadMode.MODEL]
    assert found[OffloadMode.MODEL] < sizes["transformer"] + sizes["text_encoder"]
    stored = card.parameters.transformer * card.stored_bytes / GB
    assert found[OffloadMode.LAYERWISE_CASTING] >= max(stored, sizes["text_encoder"])
    # Two blocks, what lies beside the blocks, and the embeddings of 262,208 words.
    assert found[OffloadMode.SEQUENTIAL] >= 2 * 0.3867 * value_bytes
    assert found[OffloadMode.SEQUENTIAL] >= 1.007 * value_bytes


def test_default_clip_of_ltx2_fits_into_24_gb_layer_by_layer() -> None:
    plan = make_plan(build_request("a ball", model="ltx-2.3-22b-distilled"))
    chosen = choose_offload_mode(plan.memory_estimates(value_bytes=4), memory=20 * GB)
    assert isinstance(chosen, MemoryEstimate)
    assert chosen.offload is OffloadMode.SEQUENTIAL
    larger = estimates("ltx-2.3-22b-distilled", 4, "1216x704")
    assert larger[OffloadMode.SEQUENTIAL] > chosen.bytes / GB


def test_eight_bits_take_half_of_what_is_held_as_in_the_file() -> None:
    modes = [estimates(f"ltx-2.3-22b-distilled{end}", 2) for end in ("", "-fp8")]
    whole, eight = (e[OffloadMode.LAYERWISE_CASTING] for e in modes)
    assert whole - eight >= 15
