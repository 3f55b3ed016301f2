"""The transformer of diffusers, run with everything that does not change computed once.

From step to step a clip's places and text are the same, and from clip to clip the noise levels of a
schedule. Rotations, keys and values of the text, and what the blocks are told of the time, are
therefore kept; what is left gives the same velocities as the transformer's own `forward`.
"""

from collections.abc import Hashable, Sequence
from itertools import chain
from typing import cast

import torch
import torch.nn.functional as F
from diffusers.models import LTXVideoTransformer3DModel
from diffusers.models.transformers.transformer_ltx import LTXAttention, LTXVideoAttnProcessor
from torch import Tensor

from filmlet.engine.base import TransformerInputs
from filmlet.engine.placement import Optimization
from filmlet.engine.torch.cuda_graphs import Capture, GraphedCallable, capture_cuda_graph
from filmlet.engine.torch.lru_cache import LRUCache

TIMESTEP_SCALE = 1000.0  # that the time embedding counts noise levels in
CUDA_GRAPH_MAX_TOKENS = 4096  # tokens: a longer clip keeps a GPU busy without a graph
KeyValue = tuple[Tensor, Tensor]  # keys and values, (1, heads, tokens, head)
Rotation = Tensor | tuple[Tensor, Tensor]  # complex, or cosines and sines as in diffusers
TimeEmbedding = tuple[
    Tensor, Tensor
]  # of one level: the blocks' modulations, the last layer's; (channels)


class CachedAttnProcessor(LTXVideoAttnProcessor):
    """diffusers' attention of LTX, which may be given rotations and the keys of a text ready-made.

    rotation: complex, as `apply_rotary_emb` takes it. Called as in diffusers it does what it does
    there.
    """

    def __call__(
        self,
        attn: LTXAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | KeyValue | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rotation | None = None,
    ) -> Tensor:
        if isinstance(encoder_hidden_states, tuple):
            query = attn.norm_q(attn.to_q(hidden_states))
            key, value = encoder_hidden_states
        elif isinstance(image_rotary_emb, Tensor):
            query = apply_rotary_emb(attn.norm_q(attn.to_q(hidden_states)), image_rotary_emb)
            key, value = project_key_value(attn, hidden_states, image_rotary_emb)
        else:
            plain: Tensor = super().__call__(
                attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb
            )
            return plain
        mixed = F.scaled_dot_product_attention(_split_heads(query, attn.heads), key, value)
        output: Tensor = attn.to_out[0](mixed.transpose(1, 2).flatten(2))
        return output


def project_key_value(
    attn: LTXAttention, source: Tensor, rotation: Tensor | None = None
) -> KeyValue:
    """Return keys and values of `source`, (1, tokens, channels)."""
    key = attn.norm_k(attn.to_k(source))
    if rotation is not None:
        key = apply_rotary_emb(key, rotation)
    return _split_heads(key, attn.heads), _split_heads(attn.to_v(source), attn.heads)


def _split_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def apply_rotary_emb(x: Tensor, rotation: Tensor) -> Tensor:
    """Return each two neighbouring channels as one complex number, turned; computed in float32.

    x: (1, tokens, channels); rotation: (1, tokens, channels / 2), complex.
    """
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2).to(x.dtype)


class CachedTransformer:
    """One transformer, and what it need not compute again.

    dtype: that it computes in. optimizations: COMPILE has torch compile its blocks when they
    first run, once for all of them, and once more for the first other number of tokens;
    CUDA_GRAPHS replays the steps of short clips. capture: makes graphs.
    is_lent: its blocks have their weights only while they run, so text is given them as it is.
    """

    def __init__(
        self,
        transformer: LTXVideoTransformer3DModel,
        dtype: torch.dtype,
        optimizations: frozenset[Optimization] = frozenset(),
        *,
        is_lent: bool = False,
        capture: Capture = capture_cuda_graph,
    ) -> None:
        self.transformer, self.dtype, self.is_lent = transformer, dtype, is_lent
        self.rotations: LRUCache[tuple[Rotation, Tensor]] = LRUCache(1)
        self.texts: LRUCache[tuple[Tensor, list[Tensor | KeyValue]]] = LRUCache(
            2
        )  # and the negative one
        self.times: LRUCache[TimeEmbedding] = LRUCache(64)
        self.graphed: GraphedCallable | None = None
        if Optimization.CUDA_GRAPHS in optimizations:
            weights = transformer.transformer_blocks
            self.graphed = GraphedCallable(
                self._run_blocks_flat, lambda: [*weights.parameters()], capture
            )
        for block in transformer.transformer_blocks:
            block.attn1.set_processor(CachedAttnProcessor())
            block.attn2.set_processor(CachedAttnProcessor())
            if (
                Optimization.COMPILE in optimizations
            ):  # without the hooks that lend weights and ask to go on
                block.forward = torch.compile(block.forward)

    def predict_velocity(self, call: TransformerInputs) -> Tensor:
        """Return the velocity, (1, tokens, channels), in the transformer's dtype.

        Equals the transformer's `forward` on unmasked text.
        """
        model = self.transformer
        x = model.proj_in(call.latents.to(self.dtype))
        # Who made the tensors keeps them for the clip, and these are kept beside their values.
        rotation, _ = self.rotations.get(
            id(call.video_coords), lambda: (self._rotary_emb(call.video_coords), call.video_coords)
        )
        lora_keys = tuple(lora.key for lora in call.loras)
        _, text_keys = self.texts.get(
            (id(call.prompt_embeds), lora_keys),
            lambda: (call.prompt_embeds, self._text_key_values(call.prompt_embeds)),
        )
        modulation, last = self._time_embedding(call.timesteps, lora_keys)
        x = self._run_blocks(x, text_keys, modulation, rotation)
        shift, scale = (model.scale_shift_table + last[:, :, None]).unbind(2)
        return model.proj_out(torch.addcmul(shift, model.norm_out(x), 1 + scale))

    def _run_blocks(
        self,
        x: Tensor,
        text_keys: Sequence[Tensor | KeyValue],
        modulation: Tensor,
        rotation: Rotation,
    ) -> Tensor:
        """Return all blocks; as one graph where the clip is short."""
        if self.graphed and x.shape[1] <= CUDA_GRAPH_MAX_TOKENS:
            keys = chain.from_iterable(text_keys)
            return self.graphed(x, modulation, cast(Tensor, rotation), *keys)
        for block, text in zip(self.transformer.transformer_blocks, text_keys, strict=True):
            x = block(x, text, modulation, rotation, None)
        return x

    def _run_blocks_flat(
        self, x: Tensor, modulation: Tensor, rotation: Tensor, *keys: Tensor
    ) -> Tensor:
        """Return all blocks, told by the keys and values of each."""
        blocks = self.transformer.transformer_blocks
        for block, text in zip(blocks, zip(keys[::2], keys[1::2], strict=True), strict=True):
            x = block(x, text, modulation, rotation, None)
        return x

    def _rotary_emb(self, places: Tensor) -> Rotation:
        cos, sin = self.transformer.rope(places, video_coords=places)
        if places.device.type == "mps":  # Metal's complex numbers are untried
            return cos, sin
        return torch.complex(cos[..., ::2].contiguous(), sin[..., ::2].contiguous())

    def _text_key_values(self, text: Tensor) -> list[Tensor | KeyValue]:
        """For each block."""
        model = self.transformer
        text_states = model.caption_projection(text.to(self.dtype))
        if self.is_lent:
            return [text_states] * len(model.transformer_blocks)
        return [project_key_value(block.attn2, text_states) for block in model.transformer_blocks]

    def _time_embedding(self, levels: Tensor, lora_keys: Hashable) -> TimeEmbedding:
        """(1, 1 or tokens, channels) each; tokens of one level share the work."""
        every = levels.flatten()
        different, places = every.unique(return_inverse=True)
        times = [self._embed_timestep(level, lora_keys) for level in different.tolist()]
        if len(times) == 1:
            modulation, last = times[0]
            return modulation[None, None], last[None, None]
        modulation, last = (
            torch.stack(values)[places][None] for values in zip(*times, strict=True)
        )
        return modulation, last

    def _embed_timestep(self, level: float, lora_keys: Hashable) -> TimeEmbedding:
        def compute() -> TimeEmbedding:
            time = torch.tensor([level * TIMESTEP_SCALE], device=self.transformer.device)
            modulation, last = self.transformer.time_embed(time, hidden_dtype=self.dtype)
            return modulation[0], last[0]

        return self.times.get((level, lora_keys), compute)
