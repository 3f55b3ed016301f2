"""One model with random weights: stock's pipeline and filmlet's engine over the same memory."""

from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LTX2Pipeline, LTXPipeline
from diffusers.pipelines.ltx2.vocoder import LTX2VocoderWithBWE
from torch import Tensor, nn
from transformers import Gemma3TextConfig, Gemma3TextModel, T5Config, T5EncoderModel

from bench.gpu.sizes import ModelSize
from bench.optimizations import LATENT, call, diffusers_call, random
from filmlet.core.events import PixelFormat
from filmlet.core.model_card import Components, ModelFamily
from filmlet.core.schedules import FixedSigmas
from filmlet.core.shape import VideoShape
from filmlet.engine.base import DenoiseParams, PromptEmbeds
from filmlet.engine.latents import Latents, Modalities
from filmlet.engine.placement import Optimization, Placement
from filmlet.engine.torch.components import MODEL_CLASSES, ModelComponents
from filmlet.engine.torch.dtype import torch_dtype
from filmlet.engine.torch.engine import TorchEngine
from filmlet.engine.torch.loader import build_on_meta
from filmlet.engine.torch.lora import FusedLoras
from filmlet.engine.torch.ltx2.audio import audio_latent_count
from filmlet.engine.torch.ltx2.engine import Ltx2Engine
from filmlet.engine.torch.ltx2.modules import MODEL_CLASSES as LTX2_CLASSES
from filmlet.engine.torch.ltx2.prompts import connect_text
from filmlet.engine.torch.ltx2.scene import TokenGrid, build_scene
from filmlet.engine.torch.ltx2.transformer import Ltx2Transformer, TransformerCall
from filmlet.engine.torch.transformer import CachedTransformer
from filmlet.models.registry import get_card

SIGMAS = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875)  # one-stage clips
SIGMA = 0.9  # of a single call
Call = Callable[[], object]
Velocity = CachedTransformer | Ltx2Transformer


def parameters(shape: VideoShape, sigmas: tuple[float, ...], *, audio: bool) -> DenoiseParams:
    return DenoiseParams(shape, sigmas, guidance=1.0, seed=0, audio=audio)


def weight_bytes(device: str, *modules: nn.Module) -> int:
    """Bytes that modules hold on a device; what they share counts once."""
    tensors = chain.from_iterable(chain(m.parameters(), m.buffers()) for m in modules)
    kind = torch.device(device).type
    return sum({t.data_ptr(): t.nbytes for t in tensors if t.device.type == kind}.values())


class RandomModel:
    """Parts of one model, each made when it is first asked for."""

    def __init__(self, size: ModelSize, placement: Placement) -> None:
        self.size, self.placement = size, placement
        self.dtype, self.device = torch_dtype(placement), placement.device
        self.parts: dict[str, Any] = {}

    @property
    def is_ltx2(self) -> bool:
        return self.size.family is ModelFamily.LTX2

    def part(self, name: str) -> Any:
        """A part as stock has it."""
        if name not in self.parts:
            self.parts[name] = random(self._build(name), self.placement)
        return self.parts[name]

    def twin(self, name: str) -> Any:
        """Another module over the weights of a part: each side changes how its own computes."""
        twin, part = self._build(name), self.part(name)
        twin.load_state_dict(part.state_dict(), assign=True)
        for layer, other in zip(twin.modules(), part.modules(), strict=True):
            for computed in layer._non_persistent_buffers_set:
                setattr(layer, computed, getattr(other, computed))
        return twin.eval().requires_grad_(False)

    def _build(self, name: str) -> nn.Module:
        config = dict(self.size.configs[name])
        if name == "text_encoder":
            with torch.device("meta"):
                if self.is_ltx2:
                    return Gemma3TextModel(Gemma3TextConfig(**config))
                return T5EncoderModel(T5Config(**config))
        if name == "vocoder":
            return build_on_meta(LTX2VocoderWithBWE, config)
        return build_on_meta((LTX2_CLASSES if self.is_ltx2 else MODEL_CLASSES)[name], config)

    # Both sides

    def latent_shape(self, shape: VideoShape) -> tuple[int, int, int]:
        frames = (shape.frames - 1) // 8 + 1
        return frames, shape.height // 32, shape.width // 32

    def audio_tokens(self, shape: VideoShape) -> int:
        return audio_latent_count(shape.frames, shape.fps)

    def randn(self, *size: int) -> Tensor:
        """In the dtype that is computed in."""
        return torch.randn(size, device=self.device, dtype=self.dtype)

    @cached_property
    def text_states(self) -> Tensor:
        """What LTX-2's text encoder gives: (1, words, channels, layers + 1)."""
        config = self.size.configs["connectors"]
        return self.randn(
            1, self.size.words, config["caption_channels"], config["text_proj_in_factor"]
        )

    # Stock

    def stock_step(self, shape: VideoShape, model: nn.Module | None = None) -> Call:
        """One call of diffusers' transformer, as its pipeline makes it."""
        model = model or self.part("transformer")
        if not self.is_ltx2:
            inputs = call(
                self.size.transformer, self.latent_shape(shape), self.placement, is_guided=False
            )
            return torch.no_grad()(lambda: diffusers_call(model, inputs, self.dtype))
        return self._stock_ltx2_step(shape, model)

    def _stock_ltx2_step(self, shape: VideoShape, model: Any) -> Call:
        frames, height, width = self.latent_shape(shape)
        sound, length, config = self.audio_tokens(shape), self.size.padded, model.config
        audio_width = config.audio_num_attention_heads * config.audio_attention_head_dim
        mask = torch.ones(1, length, dtype=torch.int64, device=self.device)
        time = torch.full((1,), SIGMA * 1000, device=self.device)
        inputs = {
            "hidden_states": self.randn(1, frames * height * width, LATENT),
            "audio_hidden_states": self.randn(1, sound, config.audio_in_channels),
            "encoder_hidden_states": self.randn(1, length, self.size.prompt_channels - audio_width),
            "audio_encoder_hidden_states": self.randn(1, length, audio_width),
            "encoder_attention_mask": mask,
            "audio_encoder_attention_mask": mask,
            "timestep": time,
            "sigma": time,
            "video_coords": model.rope.prepare_video_coords(
                1, frames, height, width, self.device, fps=shape.fps
            ),
            "audio_coords": model.audio_rope.prepare_audio_coords(1, sound, self.device),
            "num_frames": frames,
            "height": height,
            "width": width,
            "audio_num_frames": sound,
            "use_cross_timestep": True,
            "return_dict": False,
        }
        return torch.no_grad()(lambda: model(**inputs))

    def stock_clip(self, shape: VideoShape) -> Call:
        """diffusers' pipeline, from the text encoder's result to frames in main memory."""
        about = {
            "width": shape.width, "height": shape.height, "num_frames": shape.frames,
            "frame_rate": int(shape.fps), "guidance_scale": 1.0, "output_type": "np",
        }  # fmt: skip
        length, words = self.size.padded, self.size.words
        mask = torch.zeros(1, length, dtype=torch.int64, device=self.device)
        scheduler = FlowMatchEulerDiscreteScheduler()
        modules = {"text_encoder": None, "tokenizer": None, "scheduler": scheduler}
        modules |= {name: self.part(name) for name in ("transformer", "vae")}
        if not self.is_ltx2:
            pipe = LTXPipeline(**modules)
            mask[:, :words] = 1  # T5's padding is behind the text
            about |= {
                "prompt_embeds": self.randn(1, length, self.size.prompt_channels),
                "num_inference_steps": len(SIGMAS), "decode_timestep": 0.05,
                "decode_noise_scale": 0.025,
            }  # fmt: skip
        else:
            modules |= {name: self.part(name) for name in ("connectors", "audio_vae", "vocoder")}
            pipe = LTX2Pipeline(**modules)
            mask[:, -words:] = 1  # Gemma's is before it
            states = self.text_states.flatten(2)
            padding = states.new_zeros(1, length - words, states.shape[-1])
            about |= {
                "prompt_embeds": torch.cat([padding, states], 1), "sigmas": list(SIGMAS),
                "stg_scale": 0.0, "modality_scale": 1.0, "guidance_rescale": 0.0,
                "audio_guidance_scale": 1.0, "audio_modality_scale": 1.0, "audio_stg_scale": 0.0,
                "audio_guidance_rescale": 0.0,
                "spatio_temporal_guidance_blocks": None,
            }  # fmt: skip
        pipe.set_progress_bar_config(disable=True)
        return lambda: pipe(**about, prompt_attention_mask=mask)

    # filmlet

    def runner(
        self,
        *optimizations: Optimization,
        model: nn.Module | None = None,
        is_lent: bool = False,
    ) -> Velocity:
        """What calls the transformer. LTX-2's has no optimizations of its own."""
        model = model or self.twin("transformer")
        if self.is_ltx2:
            return Ltx2Transformer(model, self.dtype)
        return CachedTransformer(model, self.dtype, frozenset(optimizations), is_lent=is_lent)

    def filmlet_step(self, shape: VideoShape, runner: Velocity) -> Call:
        """One call of the transformer in the middle of a clip."""
        if isinstance(runner, CachedTransformer):
            inputs = call(
                self.size.transformer, self.latent_shape(shape), self.placement, is_guided=False
            )
            return torch.inference_mode()(lambda: runner.predict_velocity(inputs))
        grid = TokenGrid(*self.latent_shape(shape), fps=shape.fps, audio=self.audio_tokens(shape))

        def draw(*size: int) -> Tensor:
            return torch.randn(size, device=self.device)

        scene = build_scene(runner.model, grid, (), draw)
        levels = scene.latents.map(lambda tokens: tokens.new_full((1, 1), SIGMA))
        prompt = self.randn(1, self.size.padded, self.size.prompt_channels)
        asked = TransformerCall(scene, scene.latents, SIGMA, levels, prompt)
        return torch.inference_mode()(lambda: runner.predict_velocity(asked))

    def engine(self, *names: str) -> TorchEngine:
        """filmlet's engine with these parts, which are all that it may use."""
        place, card = Path("random weights"), get_card(self.size.card)
        files = Components(
            transformer=place,
            vae=place,
            text_encoder=place,
            tokenizer=place,
            connectors=place if self.is_ltx2 else None,
        )
        components = ModelComponents(files, self.placement, {n: self.twin(n) for n in names})
        if "vocoder" in names:
            components.modules["vocoder"].float()  # as filmlet's loader has it
        if "transformer" in names:
            module = components.modules["transformer"]
            components.fused_loras = FusedLoras(module, self.dtype)
            components.cached_transformer = self.runner(model=module)
        make = Ltx2Engine if self.is_ltx2 else TorchEngine
        engine = make(card, files, self.placement, None, components=components)
        # What an engine reads off its files, and there are none.
        has_timestep = bool(self.size.configs["vae"]["timestep_conditioning"])
        vars(engine).update(channels=LATENT, has_timestep_conditioning=has_timestep)
        return engine

    @property
    def clip_parts(self) -> tuple[str, ...]:
        """What makes a clip, but for the text encoder."""
        sound = ("connectors", "audio_vae", "vocoder") if self.is_ltx2 else ()
        return ("transformer", "vae", *sound)

    def prompt_embeds(self, engine: TorchEngine) -> PromptEmbeds:
        """From the text encoder's result, as in each new clip."""
        if not isinstance(engine, Ltx2Engine):
            return PromptEmbeds(self._short_prompt)
        with torch.inference_mode():
            return PromptEmbeds(connect_text(engine.connectors, self.text_states, self.size.padded))

    @cached_property
    def _short_prompt(self) -> Tensor:
        return self.randn(1, self.size.words, self.size.prompt_channels)

    def filmlet_clip(self, engine: TorchEngine, shape: VideoShape) -> Call:
        """One stage, from the text encoder's result to frames in main memory."""
        params = parameters(shape, SIGMAS, audio=self.is_ltx2)

        def make() -> None:
            *_, last = engine.denoise(self.prompt_embeds(engine), params)
            self._finish(engine, last.latents, params)

        return make

    def filmlet_two_stages(self, engine: TorchEngine, shape: VideoShape) -> Call:
        """A draft of half the sides, made larger and refined, as the model's card says."""
        schedules = engine.card.schedule, engine.card.refine_schedule
        first, second = (
            parameters(shape, schedule.sigmas, audio=self.is_ltx2)
            for schedule in schedules
            if isinstance(schedule, FixedSigmas)
        )

        def make() -> None:
            embeds = self.prompt_embeds(engine)
            *_, draft = engine.denoise(embeds, first.first_stage())
            *_, last = engine.refine(embeds, second, engine.upsample(draft.latents, second))
            self._finish(engine, last.latents, second)

        return make

    def _tokens(self, shape: VideoShape) -> int:
        frames, height, width = self.latent_shape(shape)
        return frames * height * width

    def _finish(self, engine: TorchEngine, latents: Latents, params: DenoiseParams) -> None:
        if params.audio:
            engine.decode_audio(latents, params, lambda: False)
        for _ in engine.decode(latents, params, PixelFormat.YUV420P):
            pass

    def latents(self, shape: VideoShape) -> Latents:
        """Of the picture alone, normalised."""
        tokens = torch.randn(1, self._tokens(shape), LATENT, device=self.device)
        return Modalities(tokens)

    def blocks(self, model: Any) -> Iterator[nn.Module]:
        """Those of the transformer, which have nearly all of its weights."""
        yield from model.transformer_blocks
