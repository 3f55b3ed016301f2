"""Files of LTX-2 by Lightricks and ComfyUI: their weights' names, and those of diffusers' modules.

A file holds any number of components. The text encoder is Gemma's language model alone: what sees
pictures and hears sound is not read.
"""

from collections.abc import Iterable, Mapping

from filmlet.core.checkpoint_headers import TensorEntry
from filmlet.errors import CheckpointCorrupt
from filmlet.models.ltx_key_mapping import last_encoder_block, rename_vae_key, replace_all

PREFIX = "model.diffusion_model."
CONNECTORS = ("video_embeddings_connector.", "audio_embeddings_connector.")
PROJECTIONS = "text_embedding_projection."
SCALE = ".weight_scale"  # of a layer in 8 bits: its weights are to be multiplied by it
QUANTIZATION = (SCALE, ".input_scale", ".comfy_quant")  # what a layer in 8 bits has besides
TRANSFORMER_RENAMES = (
    ("patchify_proj", "proj_in"),
    ("av_ca_video_scale_shift_adaln_single", "av_cross_attn_video_scale_shift"),
    ("av_ca_audio_scale_shift_adaln_single", "av_cross_attn_audio_scale_shift"),
    ("av_ca_a2v_gate_adaln_single", "av_cross_attn_video_a2v_gate"),
    ("av_ca_v2a_gate_adaln_single", "av_cross_attn_audio_v2a_gate"),
    ("scale_shift_table_a2v_ca_video", "video_a2v_cross_attn_scale_shift_table"),
    ("scale_shift_table_a2v_ca_audio", "audio_a2v_cross_attn_scale_shift_table"),
    ("q_norm", "norm_q"),
    ("k_norm", "norm_k"),
    ("prompt_adaln_single", "prompt_adaln"),
)
TRANSFORMER_STARTS = (
    ("adaln_single.", "time_embed."),
    ("audio_adaln_single.", "audio_time_embed."),
)
CONNECTOR_RENAMES = (
    ("video_embeddings_connector", "video_connector"),
    ("audio_embeddings_connector", "audio_connector"),
    ("transformer_1d_blocks", "transformer_blocks"),
    (f"{PROJECTIONS}aggregate_embed", "text_proj_in"),
    (f"{PROJECTIONS}video_aggregate_embed", "video_text_proj_in"),
    (f"{PROJECTIONS}audio_aggregate_embed", "audio_text_proj_in"),
    ("q_norm", "norm_q"),
    ("k_norm", "norm_k"),
)
VAE_RENAMES = (
    ("res_blocks", "resnets"),
    ("last_time_embedder", "time_embedder"),
    ("last_scale_shift_table", "scale_shift_table"),
)
VAE_STARTS = ("encoder.", "decoder.", "per_channel_statistics.")
STATISTICS = {
    "per_channel_statistics.mean-of-means": "latents_mean",
    "per_channel_statistics.std-of-means": "latents_std",
}
VOCODER_PARTS = {
    "ups": "upsamplers",
    "resblocks": "resnets",
    "conv_pre": "conv_in",
    "conv_post": "conv_out",
    "act_post": "act_out",
}
# Transformers' since 5 and before, and ComfyUI's.
LANGUAGE_MODEL = ("model.language_model.", "language_model.model.", "model.")
LANGUAGE_MODEL_STARTS = ("embed_tokens.", "layers.", "norm.")


def to_diffusers_keys(component: str, theirs: Iterable[str]) -> dict[str, str]:
    """Their names of a component's weights, with the names that they have in its module.

    Those of other components are left out, and the scales of layers in 8 bits.
    """
    names = [name for name in theirs if not name.endswith(QUANTIZATION)]
    match component:
        case "transformer":
            short = _without_prefix(names, PREFIX)
            pairs = {name: rename_transformer_key(new) for name, new in short.items()}
            return {n: new for n, new in pairs.items() if not short[n].startswith(CONNECTORS)}
        case "connectors":
            short = _without_prefix(names, PREFIX)
            found = {n: new for n, new in short.items() if new.startswith(CONNECTORS)}
            found |= {name: name for name in names if name.startswith(PROJECTIONS)}
            return {name: replace_all(new, CONNECTOR_RENAMES) for name, new in found.items()}
        case "vae":
            return _vae_keys(names)
        case "audio_vae":
            short = _without_prefix(names, "audio_vae.")
            pairs = {name: STATISTICS.get(new, new) for name, new in short.items()}
            return {n: new for n, new in pairs.items() if "per_channel_statistics" not in new}
        case "vocoder":
            short = _without_prefix(names, "vocoder.")
            return {name: _vocoder_key(new) for name, new in short.items()}
        case "text_encoder":
            return language_model_keys(names)
        case _:
            return {name: name for name in names}


def rename_transformer_key(name: str) -> str:
    """Return a name in the transformer as diffusers' module has it."""
    renamed = replace_all(name, TRANSFORMER_RENAMES)
    for theirs, ours in TRANSFORMER_STARTS:
        if renamed.startswith(theirs):
            return ours + renamed.removeprefix(theirs)
    return renamed


def language_model_keys(theirs: Iterable[str]) -> dict[str, str]:
    """Names of Gemma's weights, in any of its layouts, with those of its language model."""
    found: dict[str, str] = {}
    for name in theirs:
        start = next((prefix for prefix in LANGUAGE_MODEL if name.startswith(prefix)), "")
        short = name.removeprefix(start)
        if short.startswith(LANGUAGE_MODEL_STARTS) and not name.endswith(QUANTIZATION):
            found[name] = short
    return found


def scale_keys(component: str, theirs: Iterable[str]) -> dict[str, str]:
    """Their names of the scales of a component's layers, with the weights' names in the module."""
    scales = [name for name in theirs if name.endswith(SCALE)]
    weights = {f"{name.removesuffix(SCALE)}.weight": name for name in scales}
    return {weights[name]: ours for name, ours in to_diffusers_keys(component, weights).items()}


def component_keys(component: str, theirs: Iterable[str], *, is_file: bool) -> dict[str, str]:
    """As `to_diffusers_keys`, for a folder in diffusers' layout as well."""
    if is_file:
        return to_diffusers_keys(component, theirs)
    if component == "text_encoder":
        return language_model_keys(theirs)
    return {name: name for name in theirs}


def is_ltx2(theirs: Iterable[str]) -> bool:
    """Whether a file's transformer hears: LTX-Video's do not."""
    return f"{PREFIX}audio_patchify_proj.weight" in theirs


def read_version(metadata: Mapping[str, str], names: Iterable[str]) -> str:
    """Return "2.0", "2.3" or "2.5", of a transformer's names and what the header says.

    Raises CheckpointCorrupt where it says otherwise.
    """
    version = detect_version(names)
    said = metadata.get("model_version", version)
    if said.split(".")[:2] != version.split("."):
        raise CheckpointCorrupt(
            f"it says to be of version {said[:40]!r}, and its layers are those of {version}."
        )
    return version


def detect_version(names: Iterable[str]) -> str:
    """Return "2.0", "2.3" or "2.5", by the transformer's names in diffusers' module."""
    present = set(names)
    if "caption_projection.linear_1.weight" in present:
        return "2.0"
    is_biased = "transformer_blocks.0.ff.net.0.proj.bias" in present
    return "2.3" if is_biased and "keyframes_abs_pos_embedding" not in present else "2.5"


def version_of_config(config: Mapping[str, object]) -> str:
    """Return "2.0", "2.3" or "2.5", of the configuration of diffusers' transformer."""
    if config.get("use_prompt_embeddings", True):
        return "2.0"
    is_biased = config.get("ff_bias", True)
    return "2.3" if is_biased and not config.get("use_keyframes_abs_pos_embedding") else "2.5"


def check_number_formats(tensors: Mapping[str, TensorEntry], theirs: Iterable[str]) -> None:
    """That weights are numbers on their own, not in groups. Raises CheckpointCorrupt."""
    for name in theirs:
        layer = name.removesuffix(".weight")
        if f"{layer}.weight_scale_2" in tensors:
            raise CheckpointCorrupt(f"its weights are in NVFP4, which is not read: {TAKE_ANOTHER}")
        if tensors[name].dtype in ("I8", "U8"):
            raise CheckpointCorrupt(
                f"its weights are integers of 8 bits, which are not read: {TAKE_ANOTHER}"
            )


TAKE_ANOTHER = "take the file in bf16 or fp8."


def _without_prefix(names: Iterable[str], prefix: str) -> dict[str, str]:
    return {name: name.removeprefix(prefix) for name in names if name.startswith(prefix)}


def _vae_keys(names: list[str]) -> dict[str, str]:
    """Under `vae.` in a file with more, bare in one of its own."""
    short = _without_prefix(names, "vae.")
    short = short or {name: name for name in names if name.startswith(VAE_STARTS)}
    last = last_encoder_block(short.values())
    pairs = {name: rename_vae_key(new, last, VAE_RENAMES) for name, new in short.items()}
    return {name: new for name, new in pairs.items() if new}


def _vocoder_key(name: str) -> str:
    parts = name.replace("downsample.lowpass.", "downsample.").split(".")
    return ".".join(VOCODER_PARTS.get(part, part) for part in parts)
