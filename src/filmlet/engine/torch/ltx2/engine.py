"""The torch engine of LTX-2: picture and sound from one transformer."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKLLTX2Audio
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder, LTX2VocoderWithBWE
from torch import Tensor

from filmlet.core.events import Audio
from filmlet.core.model_card import ComponentFiles, ModelCard
from filmlet.engine.arrays import pack_latents, unpack_latents
from filmlet.engine.base import DenoiseParams, PromptEmbeds
from filmlet.engine.conditioning import GuideLatents, NoiseFn
from filmlet.engine.latents import Latents, Modalities
from filmlet.engine.placement import Placement
from filmlet.engine.sampler import DenoiseStep, ResumeState, StepRule, denoise_steps
from filmlet.engine.state_dict import load_latent_rgb_factors
from filmlet.engine.torch.components import ModelComponents
from filmlet.engine.torch.engine import TorchEngine, raise_when_cancelled
from filmlet.engine.torch.ltx2 import audio as sounds
from filmlet.engine.torch.ltx2 import prompts
from filmlet.engine.torch.ltx2.guidance import UNGUIDED, guidance_for, predict_guided
from filmlet.engine.torch.ltx2.scene import Scene, TokenGrid, build_scene
from filmlet.engine.torch.ltx2.step_rules import CleanEstimateRule, GivenTokens
from filmlet.engine.torch.ltx2.transformer import Ltx2Transformer, TransformerCall
from filmlet.models.tokenizer import TokenizedPrompt

ANCESTRAL_SEED_OFFSET = 10_000  # of the generator that the ancestral sampler draws from


@dataclass(frozen=True, eq=False)
class Ltx2Engine(TorchEngine):
    """One checkpoint of LTX-2; every method runs without gradients."""

    @property
    def connectors(self) -> LTX2TextConnectors:
        return self.components.get("connectors")

    @property
    def audio_vae(self) -> AutoencoderKLLTX2Audio:
        return self.components.get("audio_vae")

    @property
    def vocoder(self) -> LTX2Vocoder | LTX2VocoderWithBWE:
        return self.components.get("vocoder")

    @torch.inference_mode()
    def encode_text(self, reading: TokenizedPrompt) -> Tensor:
        ids = torch.tensor(reading.ids[:, : reading.token_count], device=self.placement.device)
        return prompts.encode_text(self.text_encoder, ids)

    @torch.inference_mode()
    def _connect_text(self, states: Tensor) -> Tensor:
        return prompts.connect_text(
            self.connectors, states.to(self.dtype), self.card.max_prompt_tokens
        )

    def denoise(
        self,
        embeddings: PromptEmbeds,
        params: DenoiseParams,
        start: ResumeState | None = None,
        guides: Sequence[GuideLatents] = (),
    ) -> Iterator[DenoiseStep]:
        grid = self._token_grid(params)
        scene = build_scene(self.transformer, grid, guides, self.noise_source(params.seed))
        noise = None
        if self.card.ancestral_sampling:
            draw = self.noise_source(params.seed + ANCESTRAL_SEED_OFFSET)
            noise = scene.latents.map(lambda tokens: lambda: draw(*tokens.shape))
        return self._denoise_scene(scene, embeddings, params, start, noise)

    def refine(
        self,
        embeddings: PromptEmbeds,
        params: DenoiseParams,
        latents: Latents,
        start: ResumeState | None = None,
        guides: Sequence[GuideLatents] = (),
    ) -> Iterator[DenoiseStep]:
        """The second stage: picture and sound are noised to its first level, and denoised.

        Its noise follows the first stage's, of one generator.
        """
        draw = self.noise_source(params.seed)
        self._skip_first_stage(draw, params, guides)
        scene = build_scene(
            self.transformer,
            self._token_grid(params),
            guides,
            draw,
            latents,
            noise_scale=params.sigmas[0],
        )
        return self._denoise_scene(scene, embeddings, params, start)

    def _skip_first_stage(
        self, draw: NoiseFn, params: DenoiseParams, guides: Sequence[GuideLatents]
    ) -> None:
        """Draw what the first stage has drawn."""
        config, grid = self.transformer.config, self._token_grid(params.first_stage())
        draw(1, grid.all_video_tokens(guides), config.in_channels)
        if grid.audio:
            draw(1, grid.audio, config.audio_in_channels)

    def _denoise_scene(
        self,
        scene: Scene,
        embeddings: PromptEmbeds,
        params: DenoiseParams,
        start: ResumeState | None,
        noise: Modalities[Callable[[], Tensor]] | None = None,
    ) -> Iterator[DenoiseStep]:
        """noise: of each modality, drawn anew in each step."""
        latents, done = scene.resume(start)
        rules: Modalities[StepRule] = Modalities(
            CleanEstimateRule(scene.given.video, noise.video if noise else None),
            None if latents.audio is None
            else CleanEstimateRule(scene.given.audio, noise.audio if noise else None),
        )  # fmt: skip

        scales = guidance_for(self.card, params.guidance) if params.is_guided else UNGUIDED

        def predict(latents: Latents, sigma: float) -> Latents:
            levels = latents.map(
                lambda tokens, given: token_sigmas(tokens, given, sigma), scene.given
            )
            call = TransformerCall(scene, latents, sigma, levels, embeddings.prompt, params.loras)
            return predict_guided(self._predict, call, embeddings.negative, scales)

        for step in denoise_steps(predict, latents, params.sigmas, rules, done):
            yield scene.split_step(step)

    @torch.inference_mode()
    def _predict(self, call: TransformerCall) -> Latents:
        with self.loras.ensure_fused(call.loras):
            runner = self.components.cached_transformer
            assert isinstance(runner, Ltx2Transformer)
            return runner.predict_velocity(call)

    @torch.inference_mode()
    def upsample(self, latents: Latents, params: DenoiseParams) -> Latents:
        """The picture at twice the sides; the sound as it is."""
        shape = self.latent_shape(params.first_stage().shape)
        small = self.statistics.denormalize(unpack_latents(latents.video, *shape))
        large = self.upsampler(small.to(self.dtype)).float()
        return Modalities(pack_latents(self.statistics.normalize(large)), latents.audio)

    @property
    def audio_sample_rate(self) -> int:
        rate: int = self.audio_vae.config.sample_rate
        return rate

    @torch.inference_mode()
    def encode_audio(self, audio: Audio, frames: int, fps: float) -> Tensor:
        samples = torch.tensor(audio.samples.T, device=self.placement.device)
        count = sounds.audio_latent_count(frames, fps)
        return sounds.encode_audio(self.audio_vae, samples, count)

    @torch.inference_mode()
    def decode_audio(
        self, latents: Latents, params: DenoiseParams, is_cancelled: Callable[[], bool]
    ) -> Audio:
        assert latents.audio is not None
        modules = (*self.audio_vae.modules(), *self.vocoder.modules())
        with raise_when_cancelled(modules, is_cancelled):
            samples = sounds.decode_audio(self.audio_vae, self.vocoder, latents.audio)
        rate = sounds.sample_rate(self.vocoder)
        count = round(params.shape.generated_frames / params.shape.fps * rate)
        stereo = sounds.fit_length(samples, count).T.contiguous()
        return Audio(stereo.cpu().numpy(), rate)

    def _token_grid(self, params: DenoiseParams) -> TokenGrid:
        shape = params.shape
        count = sounds.audio_latent_count(shape.generated_frames, shape.fps)
        return TokenGrid(
            *self.latent_shape(shape), fps=shape.fps, audio=count if params.audio else 0
        )


def token_sigmas(tokens: Tensor, given: GivenTokens | None, sigma: float) -> Tensor:
    """The noise level of each token, (1, tokens), or of all of them, (1, 1)."""
    return sigma * given.free[..., 0] if given else tokens.new_full((1, 1), sigma)


def create_engine(card: ModelCard, files: ComponentFiles, placement: Placement) -> Ltx2Engine:
    """With nothing read yet."""
    return Ltx2Engine(
        card,
        files,
        placement,
        load_latent_rgb_factors(files),
        components=ModelComponents(files, placement),
    )
