"""The transformer of diffusers, run with everything that does not change computed once.

From step to step a clip's places and text are the same, and from clip to clip the noise levels of a
schedule. Rotations, keys and values of the text, and what the blocks are told of the time, are
therefore kept; what is left gives the same velocities as the transformer's own `forward`.
"""

from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import cast

import torch
import torch.nn.functional as F
from diffusers.models import LTXVideoTransformer3DModel
from diffusers.models.transformers.transformer_ltx import LTXAttention, LTXVideoAttnProcessor
from torch import Tensor

from filmlet.engine.base import Call
from filmlet.engine.placement import Lever
from filmlet.engine.torch.attention import Attending, Size
from filmlet.engine.torch.cuda_graphs import Capture, Graphed, by_cuda
from filmlet.engine.torch.lru_cache import Latest

THOUSANDTHS = 1000.0  # that the time embedding counts noise levels in
SHORT = 4096  # tokens: a longer clip keeps a GPU busy without a graph
Keys = tuple[Tensor, Tensor]  # keys and values, (1, heads, tokens, head)
Rotation = Tensor | tuple[Tensor, Tensor]  # complex, or cosines and sines as in diffusers
Time = tuple[Tensor, Tensor]  # of one level: the blocks' modulations, the last layer's; (channels)


class Attention(LTXVideoAttnProcessor):
    """diffusers' attention of LTX, which may be given rotations and the keys of a text ready-made.

    rotation: complex, as `rotated` takes it. Called as in diffusers it does what it does there.
    """

    def __call__(
        self,
        attn: LTXAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | Keys | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rotation | None = None,
    ) -> Tensor:
        if isinstance(encoder_hidden_states, tuple):
            query = attn.norm_q(attn.to_q(hidden_states))
            key, value = encoder_hidden_states
        elif isinstance(image_rotary_emb, Tensor):
            query = rotated(attn.norm_q(attn.to_q(hidden_states)), image_rotary_emb)
            key, value = keys(attn, hidden_states, image_rotary_emb)
        else:
            plain: Tensor = super().__call__(
                attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb
            )
            return plain
        mixed = F.scaled_dot_product_attention(_apart(query, attn.heads), key, value)
        made: Tensor = attn.to_out[0](mixed.transpose(1, 2).flatten(2))
        return made


def keys(attn: LTXAttention, source: Tensor, rotation: Tensor | None = None) -> Keys:
    """What attention asks of `source`, (1, tokens, channels)."""
    key = attn.norm_k(attn.to_k(source))
    if rotation is not None:
        key = rotated(key, rotation)
    return _apart(key, attn.heads), _apart(attn.to_v(source), attn.heads)


def _apart(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def rotated(x: Tensor, rotation: Tensor) -> Tensor:
    """Each two neighbouring channels as one complex number, turned; computed in float32.

    x: (1, tokens, channels); rotation: (1, tokens, channels / 2), complex.
    """
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2).to(x.dtype)


class Stepping:
    """One transformer, and what it need not compute again.

    dtype: that it computes in. levers: COMPILE has torch compile its blocks when they first run,
    once for all of them, and once more for the first other number of tokens; GRAPHS replays the
    steps of short clips. capture: makes graphs. attending: chooses the kernel of attention.
    is_lent: its blocks have their weights only while they run, so text is given them as it is.
    """

    def __init__(
        self,
        transformer: LTXVideoTransformer3DModel,
        dtype: torch.dtype,
        levers: frozenset[Lever] = frozenset(),
        *,
        is_lent: bool = False,
        attending: Attending | None = None,
        capture: Capture = by_cuda,
    ) -> None:
        self.transformer, self.dtype, self.is_lent = transformer, dtype, is_lent
        self.attending = attending
        self.rotations: Latest[tuple[Rotation, Tensor]] = Latest(1)
        self.texts: Latest[tuple[Tensor, list[Tensor | Keys]]] = Latest(2)  # and the negative one
        self.times: Latest[Time] = Latest(64)
        self.graphed: Graphed | None = None
        if Lever.GRAPHS in levers:
            weights = transformer.transformer_blocks
            self.graphed = Graphed(self._by_keys, lambda: [*weights.parameters()], capture)
        for block in transformer.transformer_blocks:
            block.attn1.set_processor(Attention())
            block.attn2.set_processor(Attention())
            if Lever.COMPILE in levers:  # without the hooks that lend weights and ask to go on
                block.forward = torch.compile(block.forward)

    def flow(self, call: Call) -> Tensor:
        """The velocity, (1, tokens, channels), in the transformer's dtype.

        Equals the transformer's `forward` on unmasked text.
        """
        model = self.transformer
        x = model.proj_in(call.latents.to(self.dtype))
        # Who made the tensors keeps them for the clip, and these are kept beside their values.
        rotation, _ = self.rotations.get(
            id(call.places), lambda: (self._rotation(call.places), call.places)
        )
        worn = tuple((lora.sha256, lora.strength) for lora in call.loras)
        _, told = self.texts.get((id(call.text), worn), lambda: (call.text, self._told(call.text)))
        modulation, last = self._time(call.levels, worn)
        with self._attention(x.shape[1]):
            x = self._through(x, told, modulation, rotation)
        shift, scale = (model.scale_shift_table + last[:, :, None]).unbind(2)
        return model.proj_out(torch.addcmul(shift, model.norm_out(x), 1 + scale))

    def _attention(self, tokens: int) -> AbstractContextManager[None]:
        if not self.attending:
            return nullcontext()
        config = self.transformer.config
        size = Size(config.num_attention_heads, config.attention_head_dim, tokens)
        return self.attending.quickest(size)

    def _through(
        self, x: Tensor, told: Sequence[Tensor | Keys], modulation: Tensor, rotation: Rotation
    ) -> Tensor:
        """All blocks; as one graph where the clip is short."""
        if self.graphed and x.shape[1] <= SHORT:
            keys = chain.from_iterable(told)
            return self.graphed(x, modulation, cast(Tensor, rotation), *keys)
        for block, text in zip(self.transformer.transformer_blocks, told, strict=True):
            x = block(x, text, modulation, rotation, None)
        return x

    def _by_keys(self, x: Tensor, modulation: Tensor, rotation: Tensor, *keys: Tensor) -> Tensor:
        """All blocks, told by the keys and values of each."""
        blocks = self.transformer.transformer_blocks
        for block, text in zip(blocks, zip(keys[::2], keys[1::2], strict=True), strict=True):
            x = block(x, text, modulation, rotation, None)
        return x

    def _rotation(self, places: Tensor) -> Rotation:
        cos, sin = self.transformer.rope(places, video_coords=places)
        if places.device.type == "mps":  # Metal's complex numbers are untried
            return cos, sin
        return torch.complex(cos[..., ::2].contiguous(), sin[..., ::2].contiguous())

    def _told(self, text: Tensor) -> list[Tensor | Keys]:
        """For each block."""
        model = self.transformer
        words = model.caption_projection(text.to(self.dtype))
        if self.is_lent:
            return [words] * len(model.transformer_blocks)
        return [keys(block.attn2, words) for block in model.transformer_blocks]

    def _time(self, levels: Tensor, worn: Hashable) -> Time:
        """(1, 1 or tokens, channels) each; tokens of one level share the work."""
        every = levels.flatten()
        different, places = every.unique(return_inverse=True)
        times = [self._embedded(level, worn) for level in different.tolist()]
        if len(times) == 1:
            modulation, last = times[0]
            return modulation[None, None], last[None, None]
        modulation, last = (torch.stack(one)[places][None] for one in zip(*times, strict=True))
        return modulation, last

    def _embedded(self, level: float, worn: Hashable) -> Time:
        def compute() -> Time:
            time = torch.tensor([level * THOUSANDTHS], device=self.transformer.device)
            modulation, last = self.transformer.time_embed(time, hidden_dtype=self.dtype)
            return modulation[0], last[0]

        return self.times.get((level, worn), compute)
