"""What LTX-2's modules are built from, read off a file: its configuration and its shapes.

`config` of a file's header is JSON in Lightricks' words. Where a file has none, the values are
those that every published file says.
"""

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

from filmlet.core.checkpoint_headers import parse_object
from filmlet.errors import CheckpointCorrupt
from filmlet.models.ltx_key_mapping import DOWN, Shapes, block_width, count_parts

Table = Mapping[str, Any]
HEADS = 32
MODALITIES = ("", "audio_")  # prefixes of the transformer's names
LAYERS_OF_GEMMA = 49  # outputs of its layers and its embeddings: what the connectors read
UPSAMPLE_FACTORS = {  # of a vocoder, by its kernels
    (16, 15, 8, 4, 4): (6, 5, 2, 2, 2),
    (11, 4, 4, 4, 4, 4): (5, 2, 2, 2, 2, 2),
    (12, 11, 4, 4, 4): (6, 5, 2, 2, 2),
}
CONVOLUTIONAL = "CausalVideoAutoencoder"  # the class of the VAEs that are run
MEL_FRAMES_PER_S = 100


def infer_config(component: str, shapes: Shapes, table: Table | None) -> dict[str, object]:
    """What diffusers' or transformers' module is built from. shapes: by the module's own names.

    table: the `config` of the file. Raises CheckpointCorrupt.
    """
    try:
        return MAKERS[component](shapes, table)
    except KeyError as error:
        raise CheckpointCorrupt(
            f"there is no {error.args[0]} for the {component}; is it a file of LTX-2?"
        ) from error
    except (ArithmeticError, AttributeError, IndexError, TypeError, ValueError) as error:
        raise CheckpointCorrupt(
            f"its configuration and shapes are those of no {component} ({error})."
        ) from error


def _transformer(shapes: Shapes, table: Table | None) -> dict[str, object]:
    config = _part(table, "transformer")
    block = "transformer_blocks.0"
    # Files that say nothing of themselves are taken for published ones; their own silence is 1.
    multiplier = 1000 if table is None else config.get("av_ca_timestep_scale_multiplier", 1)
    positions = config.get("positional_embedding_max_pos", [20, 2048, 2048])
    has_prompt_projection = "caption_projection.linear_1.weight" in shapes
    is_modulated = shapes[f"{block}.scale_shift_table"][0] == 9
    inferred: dict[str, object] = {
        "in_channels": shapes["proj_in.weight"][1],
        "out_channels": shapes["proj_out.weight"][0],
        "cross_attention_dim": shapes[f"{block}.attn2.to_k.weight"][1],
        "audio_in_channels": shapes["audio_proj_in.weight"][1],
        "audio_out_channels": shapes["audio_proj_out.weight"][0],
        "audio_cross_attention_dim": shapes[f"{block}.audio_attn2.to_k.weight"][1],
        "num_layers": count_parts(shapes, "transformer_blocks"),
        "caption_channels": (
            shapes["caption_projection.linear_1.weight"][1]
            if has_prompt_projection
            else config.get("caption_channels", 3840)
        ),
        "norm_eps": config.get("norm_eps", 1e-6),
        "rope_theta": config.get("positional_embedding_theta", 10000.0),
        "pos_embed_max_pos": positions[0],
        "base_height": positions[1],
        "base_width": positions[2],
        "audio_pos_embed_max_pos": config.get("audio_positional_embedding_max_pos", [20])[0],
        "timestep_scale_multiplier": config.get("timestep_scale_multiplier", 1000),
        "cross_attn_timestep_scale_multiplier": multiplier,
        "attention_bias": f"{block}.attn1.to_q.bias" in shapes,
        "attention_out_bias": f"{block}.attn1.to_out.0.bias" in shapes,
        "use_prompt_embeddings": has_prompt_projection,
        "perturbed_attn": is_modulated,
        "use_prompt_adaln_single": not is_modulated or "prompt_adaln.linear.weight" in shapes,
        "use_keyframes_abs_pos_embedding": "keyframes_abs_pos_embedding" in shapes,
        **_rope(table),
    }
    for prefix in MODALITIES:
        heads = _heads(shapes, f"{block}.{prefix}attn1", config.get(f"{prefix}num_attention_heads"))
        inferred[f"{prefix}num_attention_heads"] = heads
        inferred[f"{prefix}attention_head_dim"] = shapes[f"{prefix}proj_in.weight"][0] // heads
        inferred[f"{prefix}gated_attn"] = f"{block}.{prefix}attn1.to_gate_logits.weight" in shapes
        inferred[f"{prefix}cross_attn_mod"] = shapes[f"{block}.{prefix}scale_shift_table"][0] == 9
        inferred[f"{prefix}ff_bias"] = f"{block}.{prefix}ff.net.0.proj.bias" in shapes
    return inferred


def _connectors(shapes: Shapes, table: Table | None) -> dict[str, object]:
    config = _part(table, "transformer")
    is_per_modality = "video_text_proj_in.weight" in shapes
    projection = "video_text_proj_in" if is_per_modality else "text_proj_in"
    _, features = shapes[f"{projection}.weight"]
    is_of_gemma = features % LAYERS_OF_GEMMA == 0
    captions = features // LAYERS_OF_GEMMA if is_of_gemma else config["caption_channels"]
    inferred: dict[str, object] = {
        "caption_channels": captions,
        "text_proj_in_factor": features // captions,
        "connector_rope_base_seq_len": config.get("connector_positional_embedding_max_pos", [4096])[
            0
        ],
        "rope_theta": config.get("positional_embedding_theta", 10000.0),
        "per_modality_projections": is_per_modality,
        "proj_bias": f"{projection}.bias" in shapes,
        **_rope(table),
    }
    for name, prefix in (("video", ""), ("audio", "audio_")):
        if is_per_modality:
            inferred[f"{name}_hidden_dim"] = shapes[f"{name}_text_proj_in.weight"][0]
        connector = f"{name}_connector"
        registers, inner = shapes[f"{connector}.learnable_registers"]
        attention = f"{connector}.transformer_blocks.0.attn1"
        default = config.get("connector_num_attention_heads")
        said = config.get(f"{prefix}connector_num_attention_heads", default)
        heads = _heads(shapes, attention, said, inner // 128)
        inferred[f"{connector}_num_attention_heads"] = heads
        inferred[f"{connector}_attention_head_dim"] = inner // heads
        inferred[f"{connector}_num_layers"] = count_parts(shapes, f"{connector}.transformer_blocks")
        inferred[f"{connector}_num_learnable_registers"] = registers
        inferred[f"{name}_gated_attn"] = f"{attention}.to_gate_logits.weight" in shapes
    return inferred


def _rope(table: Table | None) -> dict[str, object]:
    config = _part(table, "transformer")
    precision = config.get("frequencies_precision", "float64" if table is None else "")
    is_double = precision == "float64"
    return {"rope_type": config.get("rope_type", "split"), "rope_double_precision": is_double}


def _heads(shapes: Shapes, attention: str, said: object, otherwise: int = HEADS) -> int:
    """How many heads an attention has: gates have one value each."""
    gates = shapes.get(f"{attention}.to_gate_logits.weight")
    heads = gates[0] if gates else said or otherwise
    if type(heads) is not int or heads < 1:
        raise ValueError(f"{str(heads)[:40]} heads")
    return heads


def _vae(shapes: Shapes, table: Table | None) -> dict[str, object]:
    config = _part(table, "vae")
    if config.get("_class_name", CONVOLUTIONAL) != CONVOLUTIONAL:
        raise CheckpointCorrupt("its video VAE is a diffusion decoder; take the file with -conv-.")
    downs, ups = (count_parts(shapes, f"{half}_blocks") for half in ("encoder.down", "decoder.up"))
    blocks = [f"encoder.down_blocks.{i}" for i in range(downs)] + ["encoder.mid_block"]
    widths = [block_width(shapes, block) for block in blocks]
    stages = ["decoder.mid_block", *(f"decoder.up_blocks.{i}" for i in range(ups))]
    inner = [block_width(shapes, stage) for stage in stages]
    convolutions = [shapes[f"{b}.downsamplers.0.conv.conv.weight"][0] for b in blocks[:-1]]
    after = [shapes[f"{s}.upsamplers.0.conv.conv.weight"][0] for s in stages[1:]]
    factors = [a // b for a, b in pairwise(inner)]
    # No shape tells these; by 2.3 the decoder had a fourth block.
    is_first = ups < 4
    padding = "reflect" if is_first or table is not None else "zeros"
    return {
        "latent_channels": shapes["latents_mean"][0],
        "block_out_channels": widths[1:],
        "down_block_types": ["LTX2VideoDownBlock3D"] * downs,
        "spatio_temporal_scaling": [True] * downs,
        "layers_per_block": [count_parts(shapes, f"{block}.resnets") for block in blocks],
        "downsample_type": [DOWN[b // c] for b, c in zip(widths[1:], convolutions, strict=True)],
        # The decoder's widths are listed from the picture inwards.
        "decoder_block_out_channels": [w * f for w, f in zip(inner[1:], factors, strict=True)][
            ::-1
        ],
        "decoder_spatio_temporal_scaling": [True] * ups,
        "decoder_layers_per_block": [count_parts(shapes, f"{s}.resnets") for s in stages][::-1],
        "decoder_inject_noise": [False] * (ups + 1),
        "upsample_type": [DOWN[a // b] for a, b in zip(after, inner[1:], strict=True)],
        "upsample_residual": [is_first] * ups,
        "upsample_factor": factors[::-1],
        "timestep_conditioning": "decoder.time_embedder.timestep_embedder.linear_1.weight"
        in shapes,
        "patch_size": math.isqrt(shapes["encoder.conv_in.conv.weight"][1] // 3),
        "decoder_causal": config.get("causal_decoder", False),
        "encoder_spatial_padding_mode": config.get("encoder_spatial_padding_mode", "zeros"),
        "decoder_spatial_padding_mode": config.get("spatial_padding_mode", padding),
        "spatial_compression_ratio": 32,
        "temporal_compression_ratio": 8,
    }


def _audio_vae(shapes: Shapes, table: Table | None) -> dict[str, object]:
    del table  # shapes tell all of it
    base, channels = shapes["encoder.conv_in.conv.weight"][:2]
    levels = count_parts(shapes, "encoder.down")
    widths = [shapes[f"encoder.down.{i}.block.0.conv1.conv.weight"][0] for i in range(levels)]
    latents = shapes["decoder.conv_in.conv.weight"][1]
    return {
        "base_channels": base,
        "output_channels": shapes["decoder.conv_out.conv.weight"][0],
        "ch_mult": [width // base for width in widths],
        "num_res_blocks": count_parts(shapes, "encoder.down.0.block"),
        "in_channels": channels,
        "latent_channels": latents,
        "norm_type": "pixel",
        "causality_axis": "height",
        "mid_block_add_attention": count_parts(shapes, "encoder.mid.attn_1") > 0,
        # A quarter of the mel bins remains, and all of a latent's values have their statistics.
        "mel_bins": shapes["latents_mean"][0] // latents * 4,
        "double_z": shapes["encoder.conv_out.conv.weight"][0] == 2 * latents,
    }


def _vocoder(shapes: Shapes, table: Table | None) -> dict[str, object]:
    config = _part(table, "vocoder")
    if "mel_stft.mel_basis" not in shapes:
        config_of_one = _generator(shapes, "", config)
        rate = config.get("output_sampling_rate", _rate(config_of_one, MEL_FRAMES_PER_S))
        return {
            **config_of_one, "output_sampling_rate": rate, "act_fn": "leaky_relu",
            "antialias": False, "final_act_fn": "tanh",
        }  # fmt: skip
    bins, frequencies = shapes["mel_stft.mel_basis"]
    bwe = _part(config, "bwe")
    first = _generator(shapes, "vocoder.", _part(config, "vocoder"))
    second = _generator(shapes, "bwe_generator.", bwe)
    hop = bwe.get("hop_length", 80)
    input_rate = bwe.get("input_sampling_rate", _rate(first, MEL_FRAMES_PER_S))
    return {
        **first,
        **{f"bwe_{name}": value for name, value in second.items()},
        "filter_length": 2 * (frequencies - 1),
        "window_length": 2 * (frequencies - 1),
        "hop_length": hop,
        "num_mel_channels": bins,
        "input_sampling_rate": input_rate,
        "output_sampling_rate": bwe.get("output_sampling_rate", _rate(second, input_rate // hop)),
    }


def _generator(shapes: Shapes, prefix: str, config: Table) -> dict[str, object]:
    """What one of the two stages of a vocoder is built from."""
    hidden, channels = shapes[f"{prefix}conv_in.weight"][:2]
    ups = count_parts(shapes, f"{prefix}upsamplers")
    kernels = [shapes[f"{prefix}upsamplers.{i}.weight"][2] for i in range(ups)]
    each = count_parts(shapes, f"{prefix}resnets") // ups
    convolutions = [count_parts(shapes, f"{prefix}resnets.{i}.convs1") for i in range(each)]
    dilations = [[2 * i + 1 for i in range(count)] for count in convolutions]
    rates = config.get("upsample_rates") or UPSAMPLE_FACTORS.get(tuple(kernels))
    if rates is None:
        raise ValueError(f"a vocoder with kernels {kernels}")
    return {
        "in_channels": channels,
        "hidden_channels": hidden,
        "out_channels": shapes[f"{prefix}conv_out.weight"][0],
        "upsample_kernel_sizes": kernels,
        "upsample_factors": list(rates),
        "resnet_kernel_sizes": [
            shapes[f"{prefix}resnets.{i}.convs1.0.weight"][2] for i in range(each)
        ],
        "resnet_dilations": config.get("resblock_dilation_sizes", dilations),
        "final_bias": f"{prefix}conv_out.bias" in shapes,
    }


def _rate(generator: Mapping[str, Any], frames_per_s: int) -> int:
    factors: list[int] = generator["upsample_factors"]
    return math.prod(factors) * frames_per_s


def _upsampler(shapes: Shapes, table: Table | None) -> dict[str, object]:
    config = table or {}
    weight = shapes["initial_conv.weight"]
    return {
        "in_channels": weight[1],
        "mid_channels": weight[0],
        "num_blocks_per_stage": count_parts(shapes, "res_blocks"),
        "dims": len(weight) - 2,
        "spatial_upsample": config.get("spatial_upsample", True),
        "temporal_upsample": config.get("temporal_upsample", False),
        "rational_spatial_scale": float(config.get("spatial_scale", 2.0)),
        "use_rational_resampler": "upsampler.conv.weight" in shapes,
    }


def _text_encoder(shapes: Shapes, table: Table | None) -> dict[str, object]:
    """Gemma 3 12B's, where a file has no `gemma_config`: ComfyUI's have none."""
    if table is not None:
        return text_config(table)
    attention = "layers.0.self_attn"
    (head_dim,) = shapes[f"{attention}.q_norm.weight"]
    vocabulary, hidden = shapes["embed_tokens.weight"]
    return {
        "model_type": "gemma3_text",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": shapes["layers.0.mlp.gate_proj.weight"][0],
        "num_hidden_layers": count_parts(shapes, "layers"),
        "num_attention_heads": shapes[f"{attention}.q_proj.weight"][0] // head_dim,
        "num_key_value_heads": shapes[f"{attention}.k_proj.weight"][0] // head_dim,
        "head_dim": head_dim,
        "query_pre_attn_scalar": head_dim,
        "sliding_window": 1024,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
        },
    }


def text_config(table: Table) -> dict[str, object]:
    """What a language model is built from, out of the configuration of a model with senses."""
    if "text_config" not in table:
        return dict(table)
    config = dict(_part(table, "text_config"))
    config.setdefault("model_type", f"{table.get('model_type')}_text")
    return config


def read_file_config(component: str, metadata: Mapping[str, str]) -> Table | None:
    """What a file's header says of a component; None where it says nothing of it.

    Raises CheckpointCorrupt.
    """
    name = "gemma_config" if component == "text_encoder" else "config"
    if name not in metadata:
        return None
    try:
        table = parse_object(metadata[name])
    except ValueError as error:
        raise CheckpointCorrupt(f"its {name} cannot be read as JSON: {error}.") from error
    part = {"connectors": "transformer"}.get(component, component)
    is_whole = component in ("text_encoder", "upsampler")
    return table if is_whole or part in table else None


def _part(table: Table | None, name: str) -> Table:
    part = (table or {}).get(name, {})
    if not isinstance(part, Mapping):
        raise CheckpointCorrupt(f"its configuration cannot have {str(part)[:40]!r} as {name}.")
    return part


MAKERS: Mapping[str, Callable[[Shapes, Table | None], dict[str, object]]] = {
    "transformer": _transformer,
    "connectors": _connectors,
    "vae": _vae,
    "audio_vae": _audio_vae,
    "vocoder": _vocoder,
    "upsampler": _upsampler,
    "text_encoder": _text_encoder,
}
