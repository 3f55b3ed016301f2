"""From token ids to what LTX-2's transformer is told: text encoder, projections, connectors.

Only real tokens go through the text encoder and the projections: causal attention and norms of
single tokens give what they give in a padded prompt. The connectors see the full length, for
learned registers stand in the place of the padding.
"""

import math

import torch
import torch.nn.functional as F
from diffusers.pipelines.ltx2 import LTX2TextConnectors
from diffusers.pipelines.ltx2.connectors import per_layer_masked_mean_norm, per_token_rms_norm
from torch import Tensor, nn
from transformers import PreTrainedModel


def encode_text(text_encoder: PreTrainedModel, ids: Tensor) -> Tensor:
    """The embeddings and every layer's output of real tokens.

    ids: (1, tokens). Returns (1, tokens, channels, layers + 1).
    """
    states = text_encoder.base_model(
        input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True
    ).hidden_states
    return torch.stack(states, dim=-1)


def connect_text(connectors: LTX2TextConnectors, states: Tensor, length: int) -> Tensor:
    """What the transformer is told: (1, length, video channels + audio channels).

    states: as `encode_text` returns them, in the connectors' dtype.
    """
    pairs = zip(
        (connectors.video_connector, connectors.audio_connector),
        _project_states(connectors, states),
        strict=True,
    )
    return torch.cat([_connect(connector, tokens, length) for connector, tokens in pairs], dim=-1)


def _project_states(connectors: LTX2TextConnectors, states: Tensor) -> tuple[Tensor, Tensor]:
    """The layers of each token as one vector of the video's, and one of the audio's width."""
    config, count = connectors.config, torch.tensor([states.shape[1]], device=states.device)
    if not config.per_modality_projections:  # 2.0
        normed = per_layer_masked_mean_norm(states, count, states.device, padding_side="right")
        both = connectors.text_proj_in(normed)
        return both, both
    normed = per_token_rms_norm(states).flatten(2)
    video_scale, audio_scale = (
        math.sqrt(width / config.caption_channels)
        for width in (config.video_hidden_dim, config.audio_hidden_dim)
    )
    return (
        connectors.video_text_proj_in(normed * video_scale),
        connectors.audio_text_proj_in(normed * audio_scale),
    )


def _connect(connector: nn.Module, tokens: Tensor, length: int) -> Tensor:
    """Run one connector; tokens: (1, real tokens, channels)."""
    missing = length - tokens.shape[1]
    mask = tokens.new_zeros(1, 1, 1, length)
    if missing:
        mask[..., -missing:] = -torch.finfo(tokens.dtype).max
    connected, _ = connector(F.pad(tokens, (0, 0, 0, missing)), mask)
    result: Tensor = connected
    return result
