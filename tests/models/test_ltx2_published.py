"""Headers of the published sizes: every name has its place, and configurations are inferred."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video, LTX2VideoTransformer3DModel
from diffusers.pipelines.ltx2 import (
    LTX2LatentUpsamplerModel,
    LTX2TextConnectors,
    LTX2Vocoder,
    LTX2VocoderWithBWE,
)
from torch import Tensor, nn

from filmlet.core.model_card import ModelFamily
from filmlet.engine.state_dict import CheckpointWeights
from filmlet.models import REGISTRY, get_card
from tests.helpers import tiny_ltx2_files

pytestmark = pytest.mark.compile

# Weights, of the transformer's module and of tensors of its file; scripts/convert_ltx2_to_diffusers
# of diffusers' repository has the configurations.
PUBLISHED = {"2.0": 18_876_174_592, "2.3": 18_988_838_144, "2.5": 18_987_859_200}
TENSORS = {"2.3": 5_947, "2.5": 4_349}  # of the single file, and of the transformer's


def published_modules(version: str) -> dict[str, nn.Module]:
    """Modules of the published sizes, without memory."""
    is_later = version != "2.0"
    heads = {
        "video_connector_num_attention_heads": 32, "audio_connector_num_attention_heads": 32,
        "audio_connector_attention_head_dim": 64, "video_connector_num_layers": 8,
        "audio_connector_num_layers": 8, "video_gated_attn": True, "audio_gated_attn": True,
        "per_modality_projections": True, "proj_bias": True,
    }  # fmt: skip
    layers: dict[str, Any] = {
        "block_out_channels": (256, 512, 1024, 1024), "layers_per_block": (4, 6, 4, 2, 2),
        "decoder_block_out_channels": (256, 512, 512, 1024),
        "decoder_layers_per_block": (4, 6, 4, 2, 2),
        "decoder_spatio_temporal_scaling": (True,) * 4, "decoder_inject_noise": (False,) * 5,
        "upsample_type": ("spatiotemporal", "spatiotemporal", "temporal", "spatial"),
        "upsample_residual": (False,) * 4, "upsample_factor": (2, 2, 1, 2),
        "decoder_spatial_padding_mode": "zeros",
    }  # fmt: skip
    with torch.device("meta"):
        return {
            "transformer": LTX2VideoTransformer3DModel(
                rope_type="split", cross_attn_timestep_scale_multiplier=1000,
                gated_attn=is_later, cross_attn_mod=is_later, audio_gated_attn=is_later,
                audio_cross_attn_mod=is_later, perturbed_attn=is_later,
                use_prompt_embeddings=not is_later, ff_bias=version != "2.5",
                use_keyframes_abs_pos_embedding=version == "2.5",
            ),
            "connectors": LTX2TextConnectors(rope_type="split", **heads if is_later else {}),
            "vae": AutoencoderKLLTX2Video(
                decoder_causal=False, spatial_compression_ratio=32, temporal_compression_ratio=8,
                **layers if is_later else {},
            ),
            "audio_vae": AutoencoderKLLTX2Audio(),
            "vocoder": LTX2VocoderWithBWE() if is_later else LTX2Vocoder(),
            "latent_upsampler": LTX2LatentUpsamplerModel(use_rational_resampler=not is_later),
        }  # fmt: skip


def write_header(table: dict[str, Tensor], path: Path) -> Path:
    """Write a file of these tensors without their bytes: it takes no room on the disk."""
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in table.items():
        is_float32 = "scale_shift_table" in name
        start, end = end, end + tensor.numel() * (4 if is_float32 else 2)
        header[name] = {
            "dtype": "F32" if is_float32 else "BF16", "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }  # fmt: skip
    content = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        file.truncate(8 + len(content) + end)
    return path


def as_lists(value: Any) -> Any:
    return [as_lists(v) for v in value] if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize("version", PUBLISHED)
def test_file_of_the_published_size_is_built_as_published(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = published_modules(version)
    assert sum(p.numel() for p in modules["transformer"].parameters()) == PUBLISHED[version]
    monkeypatch.setattr(tiny_ltx2_files, "table_of", lambda _, name: modules[name].state_dict())
    nowhere = Path()
    diffusion = tiny_ltx2_files.diffusion_table(nowhere)
    table = diffusion | tiny_ltx2_files.projection_table(nowhere)
    table |= tiny_ltx2_files.vae_table(nowhere) | tiny_ltx2_files.sound_table(nowhere)
    del table["vae.per_channel_statistics.channel"]
    if version in TENSORS:
        assert len(table if version == "2.3" else diffusion) == TENSORS[version]

    file = write_header(table, tmp_path / "one.safetensors")
    card = get_card(str(file))
    assert card.version == version
    if version != "2.5":
        row = REGISTRY[f"ltx-{'2-19b' if version == '2.0' else '2.3-22b'}-distilled"]
        size = row.sources.transformer.size_bytes
        assert abs(file.stat().st_size - size) <= size / 1000
    for name, module in modules.items():
        if name == "latent_upsampler":
            continue
        weights = CheckpointWeights(name, file, ModelFamily.LTX2)
        expected = {n: tuple(t.shape) for n, t in module.state_dict().items()}
        assert weights.shapes == expected, name
        assert {k: as_lists(module.config[k]) for k in weights.config} == {
            k: as_lists(v) for k, v in weights.config.items()
        }, name
