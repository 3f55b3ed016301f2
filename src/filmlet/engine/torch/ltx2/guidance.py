"""Guidance of LTX-2's full models: the clean estimates, moved away from weaker ones.

As `MultiModalGuider` of Lightricks' ltx-core: away from the negative prompt's estimate (CFG), from
that of a model with perturbed self-attention (STG), and from that of each modality alone.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from filmlet.core.model_card import GuidanceScales, ModelCard, MultimodalGuidance
from filmlet.engine.latents import Latents, Modalities
from filmlet.engine.torch.ltx2.transformer import TransformerCall

Predict = Callable[[TransformerCall], Latents]
UNGUIDED = MultimodalGuidance(GuidanceScales(), GuidanceScales())


def guidance_for(card: ModelCard, scale: float) -> MultimodalGuidance:
    """Return what a model is guided by. scale: of the picture's CFG, 1 leaves out the sound's, too.

    A distilled model that is guided all the same has one scale for both.
    """
    guidance = card.multimodal_guidance
    if guidance is None:
        return MultimodalGuidance(GuidanceScales(scale), GuidanceScales(scale))
    audio_scale = guidance.audio.prompt if scale > 1 else 1.0
    return replace(
        guidance,
        video=replace(guidance.video, prompt=scale),
        audio=replace(guidance.audio, prompt=audio_scale),
    )


def predict_guided(
    predict: Predict, call: TransformerCall, negative: Tensor | None, guidance: MultimodalGuidance
) -> Latents:
    """Return the guided velocities. negative: prompt embeddings, as the call's.

    Estimates that no scale asks for are not computed.
    """
    velocity = predict(call)
    both = (guidance.video, guidance.audio)
    weaker: dict[str, Latents] = {}
    if negative is not None:
        weaker["prompt"] = predict(replace(call, prompt_embeds=negative))
    if any(scales.perturbation for scales in both):
        weaker["perturbation"] = predict(replace(call, perturbed_blocks=guidance.perturbed_blocks))
    if call.latents.audio is not None and any(scales.modality != 1 for scales in both):
        weaker["modality"] = predict(replace(call, is_isolated=True))
    if not weaker:
        return velocity
    names, velocities = list(weaker), list(weaker.values())

    def guide(
        scales: GuidanceScales, x: Tensor, sigmas: Tensor, own: Tensor, *others: Tensor
    ) -> Tensor:
        return _guide(scales, x, sigmas, own, dict(zip(names, others, strict=True)))

    scales = Modalities(guidance.video, guidance.audio if call.latents.audio is not None else None)
    return scales.map(guide, call.latents, call.sigmas, velocity, *velocities)


def _guide(
    scales: GuidanceScales, x: Tensor, sigmas: Tensor, own: Tensor, others: dict[str, Tensor]
) -> Tensor:
    """Return one modality's guided velocity, (1, tokens, channels).

    x: its latents. sigmas: (1, tokens or 1). own, others: velocities.
    """
    weights = {
        "prompt": scales.prompt - 1, "perturbation": scales.perturbation,
        "modality": scales.modality - 1,
    }  # fmt: skip
    levels = sigmas[..., None]
    clean = x - levels * own
    guided = clean
    for name, velocity in others.items():
        guided = guided + weights[name] * (clean - (x - levels * velocity))
    if scales.rescale:
        factor = clean.std() / guided.std()
        guided = guided * (scales.rescale * factor + 1 - scales.rescale)
    # Tokens that are given have no noise, and no velocity of their own.
    return torch.where(levels > 0, (x - guided) / levels.clamp_min(1e-9), own)
