"""Sound that is given: its spectrogram, its latents, and how a clip goes on from it."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from filmlet.core.events import Audio
from filmlet.engine.conditioning import GuideLatents
from filmlet.engine.torch.ltx2 import audio as sounds
from tests.helpers.ltx2_engines import FPS, get_twin

pytestmark = pytest.mark.compile

RATE, HOP, SIZE = 16_000, 160, 1024


def tones(seconds: float) -> NDArray[np.float32]:
    """Left and right differ: (samples, 2)."""
    time = np.arange(round(seconds * RATE)) / RATE
    left, right = np.sin(2 * np.pi * 440 * time), np.sin(2 * np.pi * 3000 * time)
    return np.stack([left, 0.3 * right], axis=1).astype(np.float32)


def slaney_filters(bins: int) -> NDArray[np.float64]:
    """(frequencies, bins), by the formula of Slaney's Auditory Toolbox, of equal area each."""

    def to_hertz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp(np.log(6.4) / 27 * (mel - 15)))

    highest = 15 + np.log(8000 / 1000) / (np.log(6.4) / 27)
    edges = to_hertz(np.linspace(0, highest, bins + 2))
    hertz = np.linspace(0, RATE / 2, SIZE // 2 + 1)[:, None]
    rising = (hertz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hertz) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rising, falling)) * 2 / (edges[2:] - edges[:-2])


def test_spectrogram_is_the_one_that_the_model_was_trained_on() -> None:
    bins, samples = 32, tones(0.25)
    padded = np.pad(samples.T, ((0, 0), (SIZE // 2, SIZE // 2)), mode="reflect")
    window = np.sin(np.pi * np.arange(SIZE) / SIZE) ** 2
    frames = np.lib.stride_tricks.sliding_window_view(padded, SIZE, axis=1)[:, ::HOP]
    magnitudes = np.abs(np.fft.rfft(frames * window))
    expected = np.log(np.maximum(magnitudes @ slaney_filters(bins), 1e-5))
    own = sounds._log_mel(torch.tensor(samples.T), RATE, HOP, bins)
    assert np.abs(np.exp(own.numpy()) - np.exp(expected)).max() < 1e-5


def test_latents_of_a_sound_are_the_means_of_the_vae() -> None:
    engine, seconds = get_twin("2.3").engine, 25 / FPS
    audio = Audio(tones(seconds), engine.audio_sample_rate)
    latents = engine.encode_audio(audio, frames=25, fps=FPS)
    vae = engine.audio_vae
    with torch.inference_mode():
        mel = sounds._log_mel(torch.tensor(audio.samples.T), RATE, HOP, vae.config.mel_bins)
        stock = vae.encode(mel[None]).latent_dist.mean  # (1, channels, latents, bins)
    packed = stock.transpose(1, 2).flatten(2)[:, :26]
    assert latents.shape == (1, 26, 16)
    assert torch.allclose(latents * vae.latents_std + vae.latents_mean, packed, atol=1e-5)


def test_short_sound_is_followed_by_silence() -> None:
    engine = get_twin("2.3").engine
    short, silence = Audio(tones(0.1), RATE), Audio(np.zeros((RATE, 2), np.float32), RATE)
    latents = engine.encode_audio(short, frames=25, fps=FPS)
    quiet = engine.encode_audio(silence, frames=25, fps=FPS)
    assert latents.shape == quiet.shape
    assert torch.allclose(latents[:, 20:25], quiet[:, 20:25], atol=1e-4)
    assert not torch.allclose(latents[:, 2:6], quiet[:, 2:6], atol=1e-2)


def test_sound_that_is_given_stays_as_it_is_in_both_stages() -> None:
    twin = get_twin("2.3")
    generator = torch.Generator().manual_seed(1)
    sound = torch.randn(1, 8, 16, generator=generator)
    guides = [
        GuideLatents(torch.randn(1, 16, 1, side, side, generator=generator), 0, 1.0, sound)
        for side in (2, 4)
    ]
    *_, first = twin.engine.denoise(twin.embeds, twin.first, guides=guides[:1])
    *_, free = twin.engine.denoise(twin.embeds, twin.first)
    upsampled = twin.engine.upsample(first.latents, twin.params)
    *_, last = twin.engine.refine(twin.embeds, twin.params, upsampled, guides=guides[1:])
    for step in (first, last):
        assert step.latents.audio is not None
        assert torch.allclose(step.latents.audio[:, :8], sound, atol=1e-6)
    assert first.latents.audio is not None
    assert free.latents.audio is not None
    assert not torch.allclose(first.latents.audio[:, 8:], free.latents.audio[:, 8:], atol=1e-3)
