"""Guidance of LTX-2's full models against stock diffusers."""

import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_ltx2 import LTX2PerturbedAttnProcessor

from filmlet.core.model_card import GuidanceScales, MultimodalGuidance
from filmlet.core.schedules import StretchedSigmas
from filmlet.engine.arrays import unpack_latents
from filmlet.engine.base import DenoiseParams, PromptEmbeds
from filmlet.engine.conditioning import GuideLatents
from filmlet.engine.torch.ltx2.guidance import guidance_for
from filmlet.models.registry import REGISTRY
from tests.helpers.ltx2_engines import (
    SEED,
    SIDE,
    Twin,
    first_frame_marked,
    get_twin,
    make_engine,
    unpack_audio,
)
from tests.helpers.tiny_ltx2 import MAX_TOKENS, VERSIONS

pytestmark = pytest.mark.compile
SIGMAS = (1.0, 0.9, 0.6)
CASES = {
    "prompt alone": ((3.0, 0.0, 1.0, 0.0), (7.0, 0.0, 1.0, 0.0)),
    "perturbed": ((1.0, 1.0, 1.0, 0.0), (1.0, 0.5, 1.0, 0.0)),
    "modality": ((1.0, 0.0, 3.0, 0.0), (1.0, 0.0, 2.0, 0.0)),
    "all, rescaled": ((3.0, 1.0, 3.0, 0.7), (7.0, 1.0, 3.0, 0.7)),
}


@pytest.fixture(params=VERSIONS)
def twin(request: pytest.FixtureRequest) -> Twin:
    return get_twin(request.param)


def negative(twin: Twin) -> torch.Tensor:
    """Embeddings of the empty prompt."""
    text = "<bos>" if twin.version == "2.5" else ""
    embeds, mask, _, _ = twin.stock.encode_prompt(
        text, do_classifier_free_guidance=False, max_sequence_length=MAX_TOKENS
    )
    with torch.inference_mode():
        video, audio, _ = twin.stock.connectors(embeds, mask, padding_side="left")
    return torch.cat([video, audio], dim=-1)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_guidance_equals_stock(
    twin: Twin, case: tuple[tuple[float, ...], tuple[float, ...]]
) -> None:
    video, audio = (GuidanceScales(*scales) for scales in case)
    engine = make_engine(
        twin.folder, twin.version, multimodal_guidance=MultimodalGuidance(video, audio, (1,))
    )
    for block in twin.transformer.transformer_blocks:  # 2.0's are built without perturbation
        block.perturbed_attn = True
        for attention in (block.attn1, block.audio_attn1):
            attention.set_processor(LTX2PerturbedAttnProcessor())
    with first_frame_marked(twin):
        stock = twin.stock(
            prompt=twin.text, negative_prompt="<bos>" if twin.version == "2.5" else "",
            width=SIDE // 2, height=SIDE // 2, num_frames=17, frame_rate=24.0,
            sigmas=list(SIGMAS), generator=torch.Generator().manual_seed(SEED),
            output_type="latent", max_sequence_length=MAX_TOKENS, return_dict=False,
            guidance_scale=video.prompt, stg_scale=video.perturbation,
            modality_scale=video.modality, guidance_rescale=video.rescale,
            audio_guidance_scale=audio.prompt, audio_stg_scale=audio.perturbation,
            audio_modality_scale=audio.modality, audio_guidance_rescale=audio.rescale,
            spatio_temporal_guidance_blocks=[1],
        )  # fmt: skip
    params = DenoiseParams(
        twin.first.shape, SIGMAS, video.prompt, SEED, audio=True
    )  # fmt: skip
    embeds = PromptEmbeds(
        engine.encode_prompt(twin.tokens), negative(twin) if video.prompt > 1 else None
    )
    *_, last = engine.denoise(embeds, params)
    size = engine.latent_shape(params.shape)
    own = engine.statistics.denormalize(unpack_latents(last.latents.video, *size))
    assert torch.allclose(own, stock[0], atol=5e-5)
    assert last.latents.audio is not None
    assert torch.allclose(unpack_audio(twin, last.latents.audio), stock[1], atol=5e-5)


def test_given_tokens_keep_their_values_under_guidance() -> None:
    twin = get_twin("2.3")
    scales = GuidanceScales(3.0, 1.0, 3.0, 0.7)
    engine = make_engine(
        twin.folder, "2.3", multimodal_guidance=MultimodalGuidance(scales, scales, (1,))
    )
    picture = torch.randn(1, 16, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    embeds = PromptEmbeds(twin.embeds.prompt, negative(twin))
    params = DenoiseParams(twin.first.shape, SIGMAS, 3.0, SEED, audio=True)
    *_, last = engine.denoise(embeds, params, guides=[GuideLatents(picture, 0, 1.0)])
    kept = last.latents.video[:, :4]
    assert torch.allclose(kept, picture.flatten(2).transpose(1, 2), atol=1e-6)
    assert last.latents.video.isfinite().all()


def test_schedule_of_full_models_follows_the_reference() -> None:
    """LTX2Scheduler's formula, at its largest shift, and stretched to its last level."""
    shift, steps = np.exp(2.05), 30
    even = np.linspace(1, 0, steps + 1)[:-1]
    shifted = shift / (shift + 1 / even - 1)
    scale = (1 - shifted[-1]) / (1 - 0.1)
    assert np.allclose(StretchedSigmas(steps).sigmas, 1 - (1 - shifted) / scale, atol=1e-6)
    assert StretchedSigmas(1).sigmas == (1.0,)


def test_request_sets_the_scale_of_the_picture_or_leaves_guidance_out() -> None:
    card = REGISTRY["ltx-2.3-22b-dev"]
    asked = guidance_for(card, 4.0)
    assert (asked.video.prompt, asked.audio.prompt) == (4.0, 7.0)
    assert guidance_for(card, 1.0).audio.prompt == 1.0
    assert asked.perturbed_blocks == (28,)
    assert guidance_for(REGISTRY["ltx-2.3-22b-distilled"], 2.0).audio == GuidanceScales(2.0)
