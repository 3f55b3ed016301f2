"""LTX-2's transformer: one call for picture and sound, as Lightricks' own code conditions it.

diffusers' `forward` differs from it in two points, so its parts are called here. What modulates
attention between picture and sound takes scale and shift from the tokens' own noise levels, and
only its gate from the other side's level. The first latent frame of the clip, which stands for one
frame, is marked in models that have an embedding for it (2.5).
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from diffusers import LTX2VideoTransformer3DModel
from diffusers.models.transformers.transformer_ltx2 import LTX2PerturbedAttnProcessor
from torch import Tensor, nn

from filmlet.core.lora import LoraAdapter
from filmlet.engine.latents import Latents, Modalities
from filmlet.engine.torch.lru_cache import LRUCache
from filmlet.engine.torch.ltx2.scene import Scene

Rotation = tuple[Tensor, Tensor]
Text = tuple[Tensor, Tensor]  # of the picture, of the sound


@dataclass(frozen=True, eq=False)
class TransformerCall:
    """What the transformer is asked.

    sigma: noise level of the step. sigmas: (1, tokens or 1) of each modality's tokens.
    prompt_embeds: (1, words, channels of the picture's text + of the sound's). is_isolated: picture
    and sound do not attend to each other. perturbed_blocks: whose self-attention passes its values
    on as they are.
    """

    scene: Scene
    latents: Latents
    sigma: float
    sigmas: Modalities[Tensor]
    prompt_embeds: Tensor
    loras: tuple[LoraAdapter, ...] = ()
    is_isolated: bool = False
    perturbed_blocks: tuple[int, ...] = ()


class Ltx2Transformer:
    """One transformer, and what it need not compute again from step to step."""

    def __init__(self, model: LTX2VideoTransformer3DModel, dtype: torch.dtype) -> None:
        self.model, self.dtype = model, dtype
        self.rotations: LRUCache[tuple[Scene, list[Rotation]]] = LRUCache(1)
        self.texts: LRUCache[tuple[Tensor, Text]] = LRUCache(2)  # and the negative one
        for block in model.transformer_blocks:
            # 2.0's are built without it; the computation of other calls is the same.
            block.perturbed_attn = True
            for attention in (block.attn1, block.audio_attn1):
                attention.set_processor(LTX2PerturbedAttnProcessor())

    def predict_velocity(self, call: TransformerCall) -> Latents:
        """The velocities of both modalities, in float32."""
        model, latents = self.model, call.latents
        x = self._mark_first_frame(model.proj_in(latents.video.to(self.dtype)), call.scene)
        has_audio, audio, audio_sigmas = latents.audio is not None, latents.audio, call.sigmas.audio
        if audio is None or audio_sigmas is None:
            # One token stands in for the sound, which nothing of the picture attends to.
            audio = x.new_zeros(1, 1, model.config.audio_in_channels)
            audio_sigmas = call.sigmas.video[:, :1]
        y = model.audio_proj_in(audio.to(self.dtype))
        video_text, audio_text = self._text(call)
        rotation, audio_rotation, cross, audio_cross = self._rotations(call.scene)
        video_time = self._time(model.time_embed, call.sigmas.video)
        audio_time = self._time(model.audio_time_embed, audio_sigmas)
        common = {
            "temb": video_time[0],
            "temb_audio": audio_time[0],
            **self._cross_modulation(call, audio_sigmas),
            **self._prompt_modulation(call),
            "video_rotary_emb": rotation,
            "audio_rotary_emb": audio_rotation,
            "ca_video_rotary_emb": cross,
            "ca_audio_rotary_emb": audio_cross,
            "use_a2v_cross_attention": has_audio and not call.is_isolated,
            "use_v2a_cross_attention": has_audio and not call.is_isolated,
        }
        for number, block in enumerate(model.transformer_blocks):
            x, y = block(
                hidden_states=x,
                audio_hidden_states=y,
                encoder_hidden_states=video_text,
                audio_encoder_hidden_states=audio_text,
                all_perturbed=number in call.perturbed_blocks,
                **common,
            )
        video = _project_out(
            x, video_time[1], model.scale_shift_table, model.norm_out, model.proj_out
        )
        if not has_audio:
            return Modalities(video)
        table = model.audio_scale_shift_table
        heard = _project_out(y, audio_time[1], table, model.audio_norm_out, model.audio_proj_out)
        return Modalities(video, heard)

    def _mark_first_frame(self, x: Tensor, scene: Scene) -> Tensor:
        if not self.model.config.use_keyframes_abs_pos_embedding:
            return x
        count = scene.grid.frame_tokens
        mark = self.model.keyframes_abs_pos_embedding.to(x.dtype)
        return torch.cat([x[:, :count] + mark, x[:, count:]], dim=1)

    def _text(self, call: TransformerCall) -> Text:
        """What is told of the prompt, to the picture and to the sound."""
        key: Hashable = id(call.prompt_embeds), tuple(lora.key for lora in call.loras)
        _, text = self.texts.get(
            key, lambda: (call.prompt_embeds, self._project_text(call.prompt_embeds))
        )
        return text

    def _project_text(self, embeds: Tensor) -> Text:
        model, config = self.model, self.model.config
        embeds = embeds.to(self.dtype)
        if not config.use_prompt_embeddings:
            width = config.audio_num_attention_heads * config.audio_attention_head_dim
            return embeds[..., :-width], embeds[..., -width:]
        video, audio = embeds.chunk(2, dim=-1)
        return model.caption_projection(video), model.audio_caption_projection(audio)

    def _rotations(self, scene: Scene) -> list[Rotation]:
        def compute() -> tuple[Scene, list[Rotation]]:
            model, device = self.model, self.model.device
            pairs = (
                (model.rope, scene.video_coords),
                (model.audio_rope, scene.audio_coords),
                (model.cross_attn_rope, scene.video_coords[:, :1]),
                (model.cross_attn_audio_rope, scene.audio_coords[:, :1]),
            )
            return scene, [rope(coords, device=device) for rope, coords in pairs]

        # The scene is kept beside its rotations, so that no other can have its id.
        return self.rotations.get(id(scene), compute)[1]

    def _time(self, embed: nn.Module, sigmas: Tensor) -> tuple[Tensor, Tensor]:
        """Modulation and embedding of noise levels, (1, tokens or 1, channels) each."""
        scale = self.model.config.timestep_scale_multiplier
        modulation, embedded = embed(
            (sigmas * scale).flatten(), batch_size=1, hidden_dtype=self.dtype
        )
        return modulation[None], embedded[None]

    def _cross_modulation(self, call: TransformerCall, audio_sigmas: Tensor) -> dict[str, Tensor]:
        """What modulates attention between picture and sound, by the names of the blocks."""
        model, config = self.model, self.model.config
        factor = config.cross_attn_timestep_scale_multiplier / config.timestep_scale_multiplier
        level = call.sigmas.video.new_full((1, 1), call.sigma)  # of each side as a whole

        def modulation(embed: Callable[..., object], sigmas: Tensor) -> Tensor:
            assert isinstance(embed, nn.Module)
            return self._time(embed, sigmas)[0]

        return {
            "temb_ca_scale_shift": modulation(
                model.av_cross_attn_video_scale_shift, call.sigmas.video
            ),
            "temb_ca_audio_scale_shift": modulation(
                model.av_cross_attn_audio_scale_shift, audio_sigmas
            ),
            "temb_ca_gate": modulation(model.av_cross_attn_video_a2v_gate, level * factor),
            "temb_ca_audio_gate": modulation(model.av_cross_attn_audio_v2a_gate, level * factor),
        }

    def _prompt_modulation(self, call: TransformerCall) -> dict[str, Tensor]:
        """What modulates the prompt (from 2.3 on), by the names of the blocks."""
        model = self.model
        if not (model.prompt_modulation and model.config.use_prompt_adaln_single):
            return {}
        level = call.sigmas.video.new_full((1, 1), call.sigma)
        return {
            "temb_prompt": self._time(model.prompt_adaln, level)[0],
            "temb_prompt_audio": self._time(model.audio_prompt_adaln, level)[0],
        }


def _project_out(
    x: Tensor, embedded: Tensor, table: Tensor, norm: nn.Module, project: nn.Module
) -> Tensor:
    shift, scale = (table + embedded[:, :, None]).unbind(2)
    velocity: Tensor = project(norm(x) * (1 + scale) + shift)
    return velocity.float()
