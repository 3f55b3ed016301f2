"""Guides of LTX-2 as Lightricks' own code lays them in, which stock deviates from.

The expected latents come from a small implementation of the reference's formulas: one list of
tokens, a mask of what is free, noise levels by token, and gates between picture and sound by the
other side's level.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from diffusers import LTX2VideoTransformer3DModel
from torch import Tensor, nn

from filmlet.engine.conditioning import GuideLatents
from filmlet.engine.sampler import ResumeState
from tests.helpers.ltx2_engines import FPS, REFINE_SIGMAS, SEED, SIGMAS, Twin, get_twin
from tests.helpers.tiny_ltx2 import VERSIONS

pytestmark = pytest.mark.compile
AUDIO = 18  # latents of the sound
CHANNELS = 16


@pytest.fixture(params=VERSIONS)
def twin(request: pytest.FixtureRequest) -> Twin:
    return get_twin(request.param)


@contextmanager
def gates_by_the_other_side(model: LTX2VideoTransformer3DModel, sigma: float) -> Iterator[None]:
    """Stock takes a gate's level from the tokens themselves; the reference from the other side."""
    gates = (model.av_cross_attn_video_a2v_gate, model.av_cross_attn_audio_v2a_gate)

    def by_level(_: nn.Module, __: tuple[Tensor, ...], named: dict) -> object:
        return (torch.tensor([sigma * 1000]),), named

    hooks = [gate.register_forward_pre_hook(by_level, with_kwargs=True) for gate in gates]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def place(guide: GuideLatents) -> Tensor:
    """Bounds of a guide's tokens that stand behind the clip's: (3, tokens, 2)."""
    frames, height, width = guide.latents.shape[2:]
    rows = []
    for frame in range(frames):
        start = 8 * frame + guide.frame
        time = [start / FPS, (start + (8 if frames > 1 else 1)) / FPS]
        for row in range(height):
            for column in range(width):
                rows.append([time, [32 * row, 32 * row + 32], [32 * column, 32 * column + 32]])
    return torch.tensor(rows, dtype=torch.float32).transpose(0, 1)


def follow_reference(
    twin: Twin,
    guides: Sequence[GuideLatents],
    sigmas: Sequence[float],
    noises: tuple[Tensor, Tensor],
    size: tuple[int, int, int],
    start: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Latents of picture and sound after all steps, (1, tokens, channels)."""
    model, text, (frames, height, width) = twin.transformer, twin.embeds.prompt, size
    count = frames * height * width
    video = start[0] if start else torch.zeros(1, count, CHANNELS)
    clean, free = video.clone(), torch.ones(1, count, 1)
    coords = [model.rope.prepare_video_coords(1, frames, height, width, video.device, fps=FPS)]
    for guide in guides:
        tokens = guide.latents.flatten(2).transpose(1, 2)
        if guide.frame == 0:
            clean[:, : tokens.shape[1]] = tokens
            free[:, : tokens.shape[1]] = 1 - guide.strength
            continue
        video = torch.cat([video, torch.zeros_like(tokens)], 1)
        clean = torch.cat([clean, tokens], 1)
        free = torch.cat([free, torch.full((1, tokens.shape[1], 1), 1 - guide.strength)], 1)
        coords.append(place(guide)[None])
    noisy = torch.lerp(video, noises[0], sigmas[0])
    x = torch.lerp(clean, noisy, free)
    y = torch.lerp(start[1], noises[1], sigmas[0]) if start else noises[1]
    mark = torch.zeros(1, x.shape[1], 1)
    mark[:, : height * width] = 1
    for now, following in pairwise([*sigmas, 0.0]):
        level = torch.tensor([[now * 1000]])
        with torch.inference_mode(), gates_by_the_other_side(model, now):
            flow, audio_flow = model(
                hidden_states=x, audio_hidden_states=y, encoder_hidden_states=text[..., :-CHANNELS],
                audio_encoder_hidden_states=text[..., -CHANNELS:],
                timestep=free[..., 0] * 1000 * now,
                audio_timestep=level.expand(1, AUDIO), sigma=level, audio_sigma=level,
                num_frames=frames, height=height, width=width, audio_num_frames=AUDIO,
                video_coords=torch.cat(coords, 2), video_keyframes_mask=mark,
                use_cross_timestep=False, return_dict=False,
            )  # fmt: skip
        clear = (x - free * now * flow) * free + clean * (1 - free)
        x = x + (x - clear) / now * (following - now)
        y = y + audio_flow * (following - now)
    return x[:, :count], y


def noise_of(generator: torch.Generator, tokens: int) -> tuple[Tensor, Tensor]:
    video = torch.randn(1, tokens, CHANNELS, generator=generator)
    return video, torch.randn(1, AUDIO, CHANNELS, generator=generator)


def guide(frame: int, strength: float, side: int, frames: int = 1) -> GuideLatents:
    generator = torch.Generator().manual_seed(100 + frame)
    latents = torch.randn(1, CHANNELS, frames, side, side, generator=generator)
    return GuideLatents(latents, frame, strength)


PLACES = {
    "first frame": [(0, 1.0, 1)],
    "first frame, half": [(0, 0.5, 1)],
    "last frame": [(16, 1.0, 1)],
    "between, weak": [(5, 0.7, 1)],
    "a video at the begin": [(0, 1.0, 2)],
    "a video elsewhere": [(4, 0.9, 2)],
    "both ends": [(0, 0.9, 1), (16, 0.8, 1)],
}


@pytest.mark.parametrize("places", PLACES.values(), ids=PLACES)
def test_guides_follow_the_reference_in_both_stages(
    twin: Twin, places: list[tuple[int, float, int]]
) -> None:
    engine, size = twin.engine, twin.engine.latent_shape(twin.first.shape)
    generator = torch.Generator().manual_seed(SEED)
    small = [guide(frame, strength, 2, frames) for frame, strength, frames in places]
    behind = sum(g.latents.shape[2] for g in small if g.frame)
    noises = noise_of(generator, (size[0] + behind) * 4)
    expected = follow_reference(twin, small, SIGMAS, noises, size)
    *_, last = engine.denoise(twin.embeds, twin.first, guides=small)
    assert torch.allclose(last.latents.video, expected[0], atol=1e-5)
    assert last.latents.audio is not None
    assert torch.allclose(last.latents.audio, expected[1], atol=1e-5)

    params = replace(twin.params, sigmas=REFINE_SIGMAS)
    large = [guide(frame, strength, 4, frames) for frame, strength, frames in places]
    upsampled = engine.upsample(last.latents, params)
    assert upsampled.audio is not None
    noises = noise_of(generator, (size[0] + behind) * 16)
    expected = follow_reference(
        twin, large, REFINE_SIGMAS, noises, engine.latent_shape(params.shape),
        (upsampled.video, upsampled.audio),
    )  # fmt: skip
    *_, last = engine.refine(twin.embeds, params, upsampled, guides=large)
    assert torch.allclose(last.latents.video, expected[0], atol=1e-5)
    assert last.latents.audio is not None
    assert torch.allclose(last.latents.audio, expected[1], atol=1e-5)


def test_guide_of_full_strength_is_kept_exactly(twin: Twin) -> None:
    given = guide(0, 1.0, 2)
    *_, last = twin.engine.denoise(twin.embeds, twin.first, guides=[given])
    tokens = given.latents.flatten(2).transpose(1, 2)
    assert torch.allclose(last.latents.video[:, : tokens.shape[1]], tokens, atol=1e-6)


def test_clip_with_a_keyframe_goes_on_from_any_step(twin: Twin) -> None:
    guides = [guide(0, 0.9, 2), guide(16, 0.8, 2)]
    steps = list(twin.engine.denoise(twin.embeds, twin.first, guides=guides))
    left = steps[2]
    start = ResumeState(left.done, left.latents, left.keyframe_tokens)
    *_, last = twin.engine.denoise(twin.embeds, twin.first, start, guides)
    assert torch.equal(last.latents.video, steps[-1].latents.video)
