"""Sound from latents and latents from sound: LTX-2's audio VAE and vocoder."""

import torch
from diffusers import AutoencoderKLLTX2Audio
from diffusers.pipelines.ltx2 import LTX2Vocoder, LTX2VocoderWithBWE
from torch import Tensor

LATENTS_PER_SECOND = 25  # 16,000 samples a second, 160 a frame of the spectrogram, 4 a latent


def audio_latent_count(frames: int, fps: float) -> int:
    """Latents of the sound of a clip: Python's `round`, as the reference has it."""
    return round(frames / fps * LATENTS_PER_SECOND)


def decode_audio(
    audio_vae: AutoencoderKLLTX2Audio, vocoder: LTX2Vocoder | LTX2VocoderWithBWE, latents: Tensor
) -> Tensor:
    """Samples (channels, samples) in [-1, 1] at `sample_rate(vocoder)`.

    latents: (1, latents, channels), normalised. The vocoder computes in float32: in bfloat16 its
    waveform is a third off.
    """
    mean, deviation = audio_vae.latents_mean.float(), audio_vae.latents_std.float()
    plain = latents.float() * deviation + mean
    bins = plain.shape[-1] // audio_vae.config.latent_channels
    spectrum = plain.unflatten(2, (-1, bins)).transpose(1, 2)
    mel = audio_vae.decode(spectrum.to(audio_vae.dtype), return_dict=False)[0]
    return vocoder(mel.float())[0].clamp(-1, 1)


def sample_rate(vocoder: LTX2Vocoder | LTX2VocoderWithBWE) -> int:
    """Of a vocoder's samples, in Hz."""
    rate: int = vocoder.config.output_sampling_rate
    return rate


def fit_length(samples: Tensor, count: int) -> Tensor:
    """Cut or padded with silence at its end, (channels, count)."""
    return torch.nn.functional.pad(samples, (0, count - samples.shape[1]))
