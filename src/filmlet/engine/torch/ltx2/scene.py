"""All tokens of one stage of LTX-2: noise, what is given, and where each token is.

As Lightricks' own pipelines lay them out: guides at frame 0 take the place of the clip's first
tokens, all others stand behind the clip's; one generator draws the picture's noise, then the
sound's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from diffusers import LTX2VideoTransformer3DModel
from torch import Tensor

from filmlet.engine.arrays import lerp, pack_latents
from filmlet.engine.conditioning import GuideLatents, NoiseFn
from filmlet.engine.latents import Latents, Modalities
from filmlet.engine.sampler import DenoiseStep, ResumeState
from filmlet.engine.torch.ltx2.step_rules import GivenTokens


@dataclass(frozen=True)
class TokenGrid:
    """The clip's latents in one stage.

    fps: frames of the clip a second. audio: how many latents its sound has, 0 without sound.
    """

    frames: int
    height: int
    width: int
    fps: float
    audio: int = 0

    @property
    def video_tokens(self) -> int:
        """Of the clip alone."""
        return self.frames * self.height * self.width

    @property
    def frame_tokens(self) -> int:
        """Of one latent frame."""
        return self.height * self.width

    def all_video_tokens(self, guides: Sequence[GuideLatents]) -> int:
        """With those of guides that stand behind the clip's."""
        behind = sum(guide.latents.shape[2] for guide in guides if guide.frame)
        return self.video_tokens + behind * self.frame_tokens


@dataclass(frozen=True, eq=False)
class Scene:
    """What one stage begins with.

    given: tokens of each modality that are given; None where all are free.
    video_coords: (1, 3, tokens, 2), start and end of each token in seconds, rows and columns of
    pixels. audio_coords: (1, 1, tokens, 2), in seconds.
    """

    grid: TokenGrid
    latents: Latents
    given: Modalities[GivenTokens | None]
    video_coords: Tensor
    audio_coords: Tensor

    def resume(self, start: ResumeState | None) -> tuple[Latents, int]:
        """Return all tokens after the model calls that are done, and how many these are."""
        if start is None or not start.done:
            return self.latents, 0
        if start.keyframe_tokens is None:
            return start.latents, start.done
        video = torch.cat([start.latents.video, start.keyframe_tokens], dim=1)
        return replace(start.latents, video=video), start.done

    def split_step(self, step: DenoiseStep) -> DenoiseStep:
        """The clip's tokens without those that stand behind them."""
        count, video = self.grid.video_tokens, step.latents.video
        if video.shape[1] == count:
            return step
        return replace(
            step,
            latents=replace(step.latents, video=video[:, :count].contiguous()),
            pred_x0=step.pred_x0[:, :count],
            keyframe_tokens=video[:, count:].contiguous(),
        )


def build_scene(
    model: LTX2VideoTransformer3DModel,
    grid: TokenGrid,
    guides: Sequence[GuideLatents],
    draw: NoiseFn,
    start: Latents | None = None,
    noise_scale: float = 1.0,
) -> Scene:
    """Lay out one stage. start: latents that are noised to `noise_scale`; None: noise alone."""
    channels, device = model.config.in_channels, model.device
    video = start.video if start else torch.zeros(1, grid.video_tokens, channels, device=device)
    clean, free = video.clone(), torch.ones(1, grid.video_tokens, 1, device=device)
    sides = (grid.frames, grid.height, grid.width)
    coords = [model.rope.prepare_video_coords(1, *sides, device, fps=grid.fps)]
    for guide in guides:
        tokens = pack_latents(guide.latents)
        level = torch.full_like(tokens[..., :1], 1 - guide.strength)
        if not guide.frame:
            clean[:, : tokens.shape[1]], free[:, : tokens.shape[1]] = tokens, level
            continue
        video = torch.cat([video, torch.zeros_like(tokens)], dim=1)
        clean, free = torch.cat([clean, tokens], dim=1), torch.cat([free, level], dim=1)
        coords.append(_keyframe_coords(guide, model.config.vae_scale_factors, grid.fps))
    noisy = lerp(video, draw(*video.shape), noise_scale)
    given = GivenTokens(clean, free) if guides else None
    if given:
        noisy = torch.lerp(clean, noisy, free)
    sound, given_sound = _noisy_audio(model, grid, guides, draw, (start, noise_scale))
    return Scene(
        grid,
        Modalities(noisy, sound),
        Modalities(given, given_sound),
        torch.cat(coords, dim=2),
        model.audio_rope.prepare_audio_coords(1, max(1, grid.audio), device),
    )


def _noisy_audio(
    model: LTX2VideoTransformer3DModel,
    grid: TokenGrid,
    guides: Sequence[GuideLatents],
    draw: NoiseFn,
    start: tuple[Latents | None, float],
) -> tuple[Tensor | None, GivenTokens | None]:
    """The sound's tokens and what of them is given. start: latents, and how far they are noised."""
    if not grid.audio:
        return None, None
    latents, noise_scale = start
    noise: Tensor = draw(1, grid.audio, model.config.audio_in_channels)
    clean = torch.zeros_like(noise)
    if latents and latents.audio is not None:
        clean = latents.audio
    noisy: Tensor = lerp(clean, noise, noise_scale)
    heard = [(g.audio, g.strength) for g in guides if g.audio is not None and not g.frame]
    if not heard:
        return noisy, None
    clean, free = clean.clone(), torch.ones_like(noise[..., :1])
    for tokens, strength in heard:
        count = min(grid.audio, tokens.shape[1])
        clean[:, :count], free[:, :count] = tokens[:, :count], 1 - strength
    return torch.lerp(clean, noisy, free), GivenTokens(clean, free)


def _keyframe_coords(guide: GuideLatents, compression: Sequence[int], fps: float) -> Tensor:
    """Where the tokens of a guide are that stands elsewhere than at the clip's begin.

    Its own grid, from its frame on; a picture lasts one frame, a latent of a video as many as it
    stands for. compression: frames, rows and columns of a latent.
    """
    frames, height, width = guide.latents.shape[2:]
    (time, side, _), device = compression, guide.latents.device
    lasts = time if frames > 1 else 1

    def bounds(count: int, step: int, size: int) -> Tensor:
        starts = torch.arange(count, dtype=torch.float32, device=device) * step
        return torch.stack([starts, starts + size], dim=-1)

    times = (bounds(frames, time, lasts) + guide.frame) / fps
    axes = (times, bounds(height, side, side), bounds(width, side, side))
    index = torch.cartesian_prod(*(torch.arange(len(axis), device=device) for axis in axes))
    return torch.stack([axis[index[:, i]] for i, axis in enumerate(axes)])[None]
