"""Checks that components fit each other and their files, before a library builds from them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filmlet.core.lora import LoraAdapter
from filmlet.core.model_card import ComponentFiles, ModelFamily
from filmlet.engine.ltx2_configs import check_ltx2_components
from filmlet.engine.placement import is_out_of_memory
from filmlet.engine.state_dict import CheckpointWeights, require_equal, require_shape
from filmlet.errors import CheckpointCorrupt, FilmletError, InvalidRequest
from filmlet.models.ltx2_key_mapping import detect_version

EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight")  # of a text encoder


def check_components(files: ComponentFiles) -> None:
    """That the components of a checkpoint fit each other. Raises CheckpointCorrupt."""
    if files.family is ModelFamily.LTX2:
        check_ltx2_components(files)
    else:
        _check_ltx_video_components(files)
    if files.preview:
        preview = CheckpointWeights("preview", files.preview)
        transformer = CheckpointWeights.from_files(files, "transformer")
        rows = transformer.config["in_channels"] + 1
        require_equal(preview, "latent_to_rgb", require_shape(preview, "latent_to_rgb"), (rows, 3))


def _check_ltx_video_components(files: ComponentFiles) -> None:
    text, transformer, vae = (
        CheckpointWeights(name, getattr(files, name))
        for name in ("text_encoder", "transformer", "vae")
    )
    _check_transformer(transformer)
    _check_vae(vae)
    _check_text_encoder(text)
    channels = transformer.config["in_channels"]
    require_equal(
        transformer, "out_channels", transformer.config["out_channels"] or channels, channels
    )
    require_equal(vae, "latents_mean", require_shape(vae, "latents_mean"), (channels,))
    require_equal(vae, "latents_std", require_shape(vae, "latents_std"), (channels,))
    captions = transformer.config["caption_channels"]
    require_equal(text, "d_model", _embedding(text)[1], captions)
    if files.upsampler:
        upsampler = CheckpointWeights("upsampler", files.upsampler)
        require_equal(
            upsampler, "in_channels", require_shape(upsampler, "initial_conv.weight")[1], channels
        )


def check_loras(files: ComponentFiles, adapters: Iterable[LoraAdapter]) -> None:
    """That LoRAs change layers that the transformer has. Raises InvalidRequest."""
    shapes = CheckpointWeights.from_files(files, "transformer").shapes
    is_ltx2 = files.family is ModelFamily.LTX2
    base = detect_version(shapes) if is_ltx2 else ModelFamily.LTX_VIDEO.value
    for adapter in adapters:
        # Layers of the same shape are no sign: those of 2.3 and 2.5 have the same, and mean others.
        if adapter.base and adapter.base.lower() != base:
            raise InvalidRequest(
                f"loras: {adapter.label} was made for {_name_base(adapter.base)}, and this model "
                f"is {_name_base(base)}.",
                param="loras",
            )
        for pair in adapter.layers:
            here = shapes.get(f"{pair.layer}.weight")
            if here != pair.shape:
                what = f"{_format_shape(here)} here" if here else "not here"
                raise InvalidRequest(
                    f"loras: {adapter.label} was made for another model; {pair.layer} is {what} "
                    f"and {_format_shape(pair.shape)} there.",
                    param="loras",
                )


def _name_base(base: str) -> str:
    return f"LTX-{base}" if base[0].isdigit() else "LTX-Video"


def _format_shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def check_vocabulary(files: ComponentFiles, highest: int) -> None:
    """That the text encoder knows a tokenizer's highest id. Raises CheckpointCorrupt."""
    text = CheckpointWeights.from_files(files, "text_encoder")
    is_gemma = files.family is ModelFamily.LTX2
    words = require_shape(text, "embed_tokens.weight")[0] if is_gemma else _embedding(text)[0]
    if not 0 <= highest < words:
        raise CheckpointCorrupt(
            f"{files.tokenizer} gives the token {highest}; {files.text_encoder} knows {words}."
        )


def _check_transformer(weights: CheckpointWeights) -> None:
    config = weights.config
    width = config["num_attention_heads"] * config["attention_head_dim"]
    require_equal(
        weights,
        "shape of proj_in.weight",
        require_shape(weights, "proj_in.weight"),
        (width, config["in_channels"]),
    )


def _check_vae(weights: CheckpointWeights) -> None:
    config = weights.config
    require_equal(weights, "in_channels", config.get("in_channels", 3), 3)
    require_equal(weights, "out_channels", config.get("out_channels", 3), 3)
    side, time = config.get("patch_size", 4), config.get("patch_size_t", 1)
    patch = 3 * side**2 * time
    require_equal(
        weights, "patch_size", require_shape(weights, "encoder.conv_in.conv.weight")[1], patch
    )
    require_equal(
        weights, "patch_size", require_shape(weights, "decoder.conv_out.conv.weight")[0], patch
    )


def _check_text_encoder(weights: CheckpointWeights) -> None:
    config = weights.config
    inner = config["num_heads"] * config["d_kv"]
    query = "encoder.block.0.layer.0.SelfAttention.q.weight"
    require_equal(weights, "d_kv", require_shape(weights, query), (inner, config["d_model"]))
    require_equal(
        weights, "vocab_size", _embedding(weights), (config["vocab_size"], config["d_model"])
    )
    exact = config.get("relative_attention_num_buckets", 32) // 4
    if not 0 < exact < config.get("relative_attention_max_distance", 128):
        raise CheckpointCorrupt(f"{weights.path}: its relative attention has no such buckets.")


def _embedding(weights: CheckpointWeights) -> tuple[int, ...]:
    name = next((name for name in EMBEDDINGS if name in weights.shapes), EMBEDDINGS[0])
    return require_shape(weights, name)


@contextmanager
def blame_files(place: Path) -> Iterator[None]:
    """Raise CheckpointCorrupt for whatever a library raises while it builds from these files."""
    try:
        yield
    except (FilmletError, MemoryError):
        raise
    except Exception as error:  # libraries raise anything over a wrong configuration
        if is_out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {error}".partition("\n")[0][:300]
        raise CheckpointCorrupt(f"{place} cannot be used ({reason}).") from error
