"""What clips of LTX-2 take, by how the model is held."""

from dataclasses import replace

import pytest

from filmlet.core.memory import (
    Ltx2Activations,
    MemoryEstimate,
    OffloadMode,
    choose_offload_mode,
    estimate_memory,
    ltx2_stage_memory,
)
from filmlet.core.model_card import Components
from filmlet.core.request import build_request
from filmlet.core.shape import VideoShape
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


def test_frames_sound_and_given_pictures_count_as_measured() -> None:
    """The figures of bench/MEMORY.md, of each stage and in the leanest mode."""
    none = Components(*(0.0,) * 5, connectors=0.0, audio_vae=0.0, vocoder=0.0)
    busy = Ltx2Activations(prompt=1.0, denoise=2.0, decode=3.0, audio=4.0)
    assert ltx2_stage_memory(none, 4, busy) == {
        "prompt": 1.0, "denoise": 2.0, "upsample": 2.0, "decode": 3.0, "audio": 4.0,
    }  # fmt: skip
    plan = make_plan(build_request("a ball", model="ltx-2.3-22b-distilled", size="1216x704"))
    parameters, grid = plan.parameters, plan.card.grid

    def leanest(shape: VideoShape, has_guides: bool = False) -> int:
        modes = estimate_memory(parameters, shape, grid, 4, 2, has_guides)
        return next(e.bytes for e in modes if e.offload is OffloadMode.SEQUENTIAL)

    area = plan.shape.generated_width * plan.shape.generated_height
    assert leanest(plan.shape) >= 4 * (2_700 * area + parameters.vae)
    long = replace(plan.shape, generated_frames=481)
    assert leanest(long, has_guides=True) > leanest(long)
    small = replace(long, generated_width=256, generated_height=256)
    assert leanest(small) >= 20 * 4 * 52_000_000
