"""Sound from latents and latents from sound: LTX-2's audio VAE and vocoder."""

from functools import cache

import torch
from diffusers import AutoencoderKLLTX2Audio
from diffusers.pipelines.ltx2 import LTX2Vocoder, LTX2VocoderWithBWE
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

FFT_SIZE = 1024  # samples of a frame of the spectrogram
MEL_FLOOR = 1e-5  # the least that is told from silence
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


def encode_audio(audio_vae: AutoencoderKLLTX2Audio, samples: Tensor, count: int) -> Tensor:
    """So many normalised latents of a sound, (1, count, channels); silence where it is too short.

    samples: (channels, samples) at the VAE's rate. As `AudioProcessor` and `encode_audio` of
    Lightricks' ltx-core.
    """
    config = audio_vae.config
    needed = round(count / LATENTS_PER_SECOND * config.sample_rate)
    mel = _log_mel(fit_length(samples, needed), config.sample_rate, config.mel_hop_length,
                   config.mel_bins)  # fmt: skip
    encoded = audio_vae.encode(mel[None].to(audio_vae.dtype)).latent_dist.mode()
    packed = encoded.transpose(1, 2).flatten(2)[:, :count].float()
    return (packed - audio_vae.latents_mean.float()) / audio_vae.latents_std.float()


def _log_mel(samples: Tensor, rate: int, hop: int, bins: int) -> Tensor:
    """Logarithm of the mel spectrogram, (channels, frames, bins)."""
    window = torch.hann_window(FFT_SIZE, device=samples.device)
    spectrum = torch.stft(
        samples, FFT_SIZE, hop, window=window, center=True, pad_mode="reflect", return_complex=True
    )
    mel = spectrum.abs().transpose(1, 2) @ _mel_filters(rate, bins).to(samples.device)
    return mel.clamp_min(MEL_FLOOR).log()


@cache
def _mel_filters(rate: int, bins: int) -> Tensor:
    """(frequencies, bins)."""
    filters = mel_filter_bank(
        FFT_SIZE // 2 + 1, bins, 0.0, rate / 2, rate, norm="slaney", mel_scale="slaney"
    )
    return torch.tensor(filters, dtype=torch.float32)
