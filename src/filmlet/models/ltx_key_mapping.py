"""Lightricks' own files: transformer and VAE in one, in other names than diffusers' modules have.

Which module a file needs is read off the shapes of its weights. Versions 0.9.5 and later.
"""

import re
from collections.abc import Iterable, Mapping
from itertools import pairwise

from filmlet.errors import CheckpointCorrupt

Renames = tuple[tuple[str, str], ...]
Shapes = Mapping[str, tuple[int, ...]]
HEADS = 32  # of every LTX-Video transformer; no shape tells it
PREFIX = {"transformer": "model.diffusion_model.", "vae": "vae.", "upsampler": ""}
TRANSFORMER_RENAMES = (
    ("patchify_proj", "proj_in"),
    ("adaln_single", "time_embed"),
    ("q_norm", "norm_q"),
    ("k_norm", "norm_k"),
)
VAE_RENAMES = (
    ("res_blocks", "resnets"),
    ("conv_shortcut", "conv_shortcut.conv"),
    ("norm3.norm", "norm3"),
    ("last_time_embedder", "time_embedder"),
    ("last_scale_shift_table", "scale_shift_table"),
)
ENCODER_BLOCK = re.compile(r"encoder\.down_blocks\.(\d{1,4})\.")
BLOCK = re.compile(r"(\w+)\.(down|up)_blocks\.(\d+)\.(.+)")
STATISTICS = {"mean-of-means": "latents_mean", "std-of-means": "latents_std"}
DOWN = {4: "spatial", 2: "temporal", 8: "spatiotemporal"}  # by the product of the strides


def to_diffusers_keys(component: str, theirs: Iterable[str]) -> dict[str, str]:
    """Their names of a component's weights, with the names that they have in diffusers' module."""
    prefix = PREFIX[component]
    renamed = {name: name.removeprefix(prefix) for name in theirs if name.startswith(prefix)}
    match component:
        case "transformer":
            return {name: rename_transformer_key(short) for name, short in renamed.items()}
        case "vae":
            last = last_encoder_block(renamed.values())
            pairs = {name: rename_vae_key(new, last, VAE_RENAMES) for name, new in renamed.items()}
            return {name: new for name, new in pairs.items() if new}
        case _:
            return renamed


def rename_transformer_key(name: str) -> str:
    """Return a name in the transformer as diffusers' module has it."""
    return replace_all(name, TRANSFORMER_RENAMES)


def last_encoder_block(names: Iterable[str]) -> int:
    """The highest number of a VAE encoder's blocks, in Lightricks' names."""
    matches = (ENCODER_BLOCK.match(name) for name in names)
    return max((int(match[1]) for match in matches if match), default=0)


def rename_vae_key(name: str, last: int, renames: Renames) -> str | None:
    """A weight of a VAE, whose encoder has blocks up to `last`; None for what nobody needs."""
    if name.startswith("per_channel_statistics."):
        return STATISTICS.get(name.partition(".")[2])
    match = BLOCK.match(name)
    if not match:
        return replace_all(name, renames)
    coder, kind, number, rest = match.groups()
    # Blocks and what resamples between them are counted in one row there, and apart in diffusers.
    middle = last if kind == "down" else 0
    half, is_between = divmod(int(number), 2)
    if int(number) == middle:
        block = "mid_block"
    elif is_between:
        block = f"{kind}_blocks.{half}.{kind}samplers.0"
    else:
        block = f"{kind}_blocks.{half if kind == 'down' else half - 1}"
    return replace_all(f"{coder}.{block}.{rest}", renames)


def replace_all(name: str, pairs: Renames) -> str:
    """A name with each of theirs replaced by ours, one pair after the other."""
    for theirs, ours in pairs:
        name = name.replace(theirs, ours)
    return name


def infer_config(component: str, shapes: Shapes) -> dict[str, object]:
    """Return the configuration of diffusers' module, by the shapes of its weights."""
    makers = {"transformer": _transformer, "vae": _vae, "upsampler": _upsampler}
    try:
        return makers[component](shapes)
    except KeyError as error:
        raise CheckpointCorrupt(
            f"there is no {error.args[0]} for the {component}; is it a file of LTX-Video 0.9.5 or "
            "later?"
        ) from error
    except (ArithmeticError, IndexError, ValueError) as error:
        raise CheckpointCorrupt(f"its shapes are those of no {component} ({error}).") from error


def _transformer(shapes: Shapes) -> dict[str, object]:
    width, channels = shapes["proj_in.weight"]
    return {
        "in_channels": channels,
        "out_channels": shapes["proj_out.weight"][0],
        "num_attention_heads": HEADS,
        "attention_head_dim": width // HEADS,
        "cross_attention_dim": shapes["transformer_blocks.0.attn2.to_k.weight"][1],
        "num_layers": count_parts(shapes, "transformer_blocks"),
        "caption_channels": shapes["caption_projection.linear_1.weight"][1],
    }


def _vae(shapes: Shapes) -> dict[str, object]:
    downs, ups = (
        count_parts(shapes, "encoder.down_blocks"),
        count_parts(shapes, "decoder.up_blocks"),
    )
    blocks = [f"encoder.down_blocks.{i}" for i in range(downs)] + ["encoder.mid_block"]
    widths = [block_width(shapes, block) for block in blocks]
    out_channels = [shapes[f"{block}.downsamplers.0.conv.conv.weight"][0] for block in blocks[:-1]]
    down = [DOWN[after // conv] for after, conv in zip(widths[1:], out_channels, strict=True)]
    latent, _ = shapes["encoder.conv_out.conv.weight"][:2]
    stages = ["decoder.mid_block", *(f"decoder.up_blocks.{i}" for i in range(ups))]
    inner = [block_width(shapes, stage) for stage in stages]
    factors = [a // b for a, b in pairwise(inner)]
    timed = "decoder.time_embedder.timestep_embedder.linear_1.weight" in shapes
    return {
        "latent_channels": latent - 1,
        "block_out_channels": widths,
        "down_block_types": ["LTXVideo095DownBlock3D"] * downs,
        "spatio_temporal_scaling": [True] * downs,
        "layers_per_block": [count_parts(shapes, f"{block}.resnets") for block in blocks],
        "downsample_type": down,
        # The decoder's are listed from the picture inwards.
        "decoder_block_out_channels": [w * f for w, f in zip(inner[1:], factors, strict=True)][
            ::-1
        ],
        "decoder_spatio_temporal_scaling": [True] * ups,
        "decoder_layers_per_block": [count_parts(shapes, f"{s}.resnets") for s in stages][::-1],
        "decoder_inject_noise": [False] * (ups + 1),
        "upsample_residual": [True] * ups,
        "upsample_factor": factors[::-1],
        "timestep_conditioning": timed,
        "patch_size": round((shapes["encoder.conv_in.conv.weight"][1] / 3) ** 0.5),
    }


def _upsampler(shapes: Shapes) -> dict[str, object]:
    middle, channels = shapes["initial_conv.weight"][:2]
    return {
        "in_channels": channels,
        "mid_channels": middle,
        "num_blocks_per_stage": count_parts(shapes, "res_blocks"),
    }


def block_width(shapes: Shapes, block: str) -> int:
    """Channels of a block of a VAE."""
    return shapes[f"{block}.resnets.0.conv1.conv.weight"][0]


def count_parts(shapes: Shapes, stem: str) -> int:
    """How many numbered parts there are under a name."""
    stem += "."
    indices = {n.removeprefix(stem).partition(".")[0] for n in shapes if n.startswith(stem)}
    return len(indices)
