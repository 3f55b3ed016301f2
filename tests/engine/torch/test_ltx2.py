"""LTX-2 against stock diffusers, stage by stage, on tiny random twins of each version."""

from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from filmlet.engine.arrays import unpack_latents
from filmlet.engine.latents import Latents, Modalities
from filmlet.engine.sampler import ResumeState
from filmlet.engine.torch import vae_decoder
from filmlet.errors import Cancelled
from tests.helpers.ltx2_engines import (
    FPS,
    FRAMES,
    REFINE_SIGMAS,
    SEED,
    SIDE,
    SIGMAS,
    UNGUIDED,
    Twin,
    first_frame_marked,
    get_twin,
    make_engine,
    unpack_audio,
)
from tests.helpers.tiny_ltx2 import MAX_TOKENS, VERSIONS

pytestmark = pytest.mark.compile

EXACT = 1e-5


@pytest.fixture(params=VERSIONS)
def twin(request: pytest.FixtureRequest) -> Twin:
    return get_twin(request.param)


def run_stock(
    twin: Twin, side: int, sigmas: tuple[float, ...], generator: torch.Generator, **more: object
) -> tuple[Tensor, Tensor]:
    """Latents of picture and sound, as its VAEs take them."""
    with first_frame_marked(twin):
        video, audio = twin.stock(
            prompt=twin.text, width=side, height=side, num_frames=FRAMES, frame_rate=FPS,
            sigmas=list(sigmas), generator=generator, output_type="latent",
            max_sequence_length=MAX_TOKENS, return_dict=False, use_cross_timestep=True,
            **UNGUIDED, **more,
        )  # fmt: skip
    return video, audio


def assert_same(twin: Twin, latents: Latents, size: tuple[int, ...], stock: Any) -> None:
    video = unpack_latents(latents.video, *size)
    assert torch.allclose(twin.engine.statistics.denormalize(video), stock[0], atol=EXACT)
    assert latents.audio is not None
    assert torch.allclose(unpack_audio(twin, latents.audio), stock[1], atol=EXACT)


def test_prompts_are_told_as_in_stock(twin: Twin) -> None:
    embeds, mask, _, _ = twin.stock.encode_prompt(
        twin.text, do_classifier_free_guidance=False, max_sequence_length=MAX_TOKENS
    )
    with torch.inference_mode():
        video, audio, _ = twin.stock.connectors(embeds, mask, padding_side="left")
    told = twin.embeds.prompt
    assert torch.allclose(told, torch.cat([video, audio], dim=-1), atol=EXACT)


def test_both_stages_equal_stock(twin: Twin) -> None:
    engine, params = twin.engine, twin.params
    generator = torch.Generator().manual_seed(SEED)
    stock = run_stock(twin, SIDE // 2, SIGMAS, generator)
    *_, first = engine.denoise(twin.embeds, twin.first)
    assert_same(twin, first.latents, engine.latent_shape(twin.first.shape), stock)

    upsampled = engine.upsample(first.latents, params)
    with torch.inference_mode():
        larger = engine.upsampler(stock[0])
    shape = engine.latent_shape(params.shape)
    own = engine.statistics.denormalize(unpack_latents(upsampled.video, *shape))
    assert torch.allclose(own, larger, atol=EXACT)

    stock = run_stock(
        twin, SIDE, REFINE_SIGMAS, generator,
        latents=larger, audio_latents=stock[1], noise_scale=REFINE_SIGMAS[0],
    )  # fmt: skip
    *_, last = engine.refine(twin.embeds, replace(params, sigmas=REFINE_SIGMAS), upsampled)
    assert_same(twin, last.latents, shape, stock)

    with torch.inference_mode():
        frames = twin.stock.vae.decode(stock[0], return_dict=False)[0][0].permute(1, 2, 3, 0)
        mel = twin.stock.audio_vae.decode(stock[1], return_dict=False)[0]
        wave = twin.stock.vocoder(mel)[0]
    whole = ((frames + 1) * 127.5).round().clamp(0, 255).numpy()
    pixels = np.concatenate(list(engine.decode(last.latents, params)))
    assert np.abs(pixels - whole).max() <= 1  # one grey level, where rounding falls apart
    sound = engine.decode_audio(last.latents, params, lambda: False)
    assert sound.sample_rate == {"2.0": 24000}.get(twin.version, 48000)
    assert len(sound.samples) == round(FRAMES / FPS * sound.sample_rate)
    heard = wave.shape[1]
    assert np.abs(sound.samples[:heard].T - wave.numpy()).max() < EXACT
    assert not sound.samples[heard:].any()  # silence after the last of the spectrogram


def test_ancestral_first_stage_follows_the_reference() -> None:
    """Coefficients of x, of the clean estimate and of the noise, as the reference's formula has."""
    twin = get_twin("2.5")
    engine = make_engine(twin.folder, "2.5", ancestral_sampling=True)
    *_, last = engine.denoise(twin.embeds, twin.first)

    plain = torch.Generator().manual_seed(SEED)
    extra = torch.Generator().manual_seed(SEED + 10000)
    frames, height, width = engine.latent_shape(twin.first.shape)
    text = twin.embeds.prompt
    video = torch.randn(1, frames * height * width, 16, generator=plain)
    audio = torch.randn(1, 18, 16, generator=plain)
    mask = torch.zeros(1, video.shape[1], 1)
    mask[:, : height * width] = 1
    levels = [*SIGMAS, 0.0]
    for now, following in pairwise(levels):
        time = torch.tensor([[now * 1000]])
        with torch.inference_mode():
            flows = twin.transformer(
                hidden_states=video, audio_hidden_states=audio,
                encoder_hidden_states=text[..., :32], audio_encoder_hidden_states=text[..., 32:],
                timestep=time, sigma=time, num_frames=frames, height=height, width=width, fps=FPS,
                audio_num_frames=18, video_keyframes_mask=mask, return_dict=False,
            )  # fmt: skip
        clean = [x - now * flow for x, flow in zip((video, audio), flows, strict=True)]
        if not following:
            video, audio = clean
            break
        down = following**2 / now
        keep = (1 - following) / (1 - down)
        up = (following**2 - down**2 * keep**2) ** 0.5
        video, audio = (
            keep * (down / now * x + (1 - down / now) * x0)
            + up * torch.randn(x.shape, generator=extra)
            for x, x0 in zip((video, audio), clean, strict=True)
        )
    assert torch.allclose(last.latents.video, video, atol=EXACT)
    assert last.latents.audio is not None
    assert torch.allclose(last.latents.audio, audio, atol=EXACT)


@pytest.mark.parametrize("is_ancestral", [False, True])
def test_clip_left_in_any_step_goes_on_to_the_same_latents(is_ancestral: bool) -> None:
    twin = get_twin("2.5")
    engine = make_engine(twin.folder, "2.5", ancestral_sampling=is_ancestral)
    steps = list(engine.denoise(twin.embeds, twin.first))
    for step in steps[:-1]:
        *_, last = engine.denoise(twin.embeds, twin.first, ResumeState(step.done, step.latents))
        assert torch.equal(last.latents.video, steps[-1].latents.video)
        assert last.latents.audio is not None
        assert steps[-1].latents.audio is not None
        assert torch.equal(last.latents.audio, steps[-1].latents.audio)


def test_without_sound_the_picture_is_made_alone(twin: Twin) -> None:
    params = replace(twin.first, audio=False, sigmas=(1.0,))
    *_, last = twin.engine.denoise(twin.embeds, params)
    assert last.latents.audio is None
    frames, height, width = twin.engine.latent_shape(params.shape)
    noise = torch.randn(
        1, frames * height * width, 16, generator=torch.Generator().manual_seed(SEED)
    )
    embeds, mask, _, _ = twin.stock.encode_prompt(
        twin.text, do_classifier_free_guidance=False, max_sequence_length=MAX_TOKENS
    )
    time = torch.tensor([[1000.0]])
    with torch.inference_mode(), first_frame_marked(twin):
        video, audio, _ = twin.stock.connectors(embeds, mask, padding_side="left")
        flow, _ = twin.transformer(
            hidden_states=noise, audio_hidden_states=torch.randn(1, 18, 16),
            encoder_hidden_states=video, audio_encoder_hidden_states=audio,
            timestep=time, sigma=time, num_frames=frames, height=height, width=width, fps=FPS,
            audio_num_frames=18, isolate_modalities=True, return_dict=False,
        )  # fmt: skip
    assert torch.allclose(last.latents.video, noise - flow, atol=EXACT)


@pytest.mark.parametrize("pieces", [1, 2])
def test_decoding_in_pieces_equals_decoding_at_once(twin: Twin, pieces: int) -> None:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 16, 4, 2, 2, generator=generator, dtype=torch.float64)
    vae = deepcopy(twin.stock.vae).double()  # in float32 a random decoder blows rounding up
    with torch.inference_mode():
        whole = vae.decode(latents, return_dict=False)[0]
        parts = list(vae_decoder.decode(vae.decoder, latents.split(pieces, dim=2)))
    assert len(parts) > 1
    assert torch.allclose(torch.cat(parts, dim=2), whole, atol=1e-10)


def test_cancelling_stops_inside_a_step_and_inside_the_vocoder(twin: Twin) -> None:
    engine, asked = twin.engine, 0

    def is_cancelled() -> bool:
        nonlocal asked
        asked += 1
        return asked > 2

    with pytest.raises(Cancelled), engine.cancel_when(is_cancelled):
        next(engine.denoise(twin.embeds, twin.first))
    assert asked == 3
    latents = Modalities(torch.zeros(1, 12, 16), torch.zeros(1, 18, 16))
    asked = 0
    with pytest.raises(Cancelled):
        engine.decode_audio(latents, twin.params, is_cancelled)
    assert asked == 3
