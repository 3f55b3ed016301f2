"""Whether components fit each other and their files, before a library builds from them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filmlet.core.lora import LoraAdapter
from filmlet.core.model_card import ComponentFiles
from filmlet.engine.placement import is_out_of_memory
from filmlet.engine.state_dict import CheckpointWeights
from filmlet.errors import CheckpointCorrupt, FilmletError, InvalidRequest

EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight")  # of a text encoder


def check_components(files: ComponentFiles) -> None:
    """That the components of a checkpoint fit each other. Raises CheckpointCorrupt."""
    text, transformer, vae = (
        CheckpointWeights(name, getattr(files, name))
        for name in ("text_encoder", "transformer", "vae")
    )
    _check_transformer(transformer)
    _check_vae(vae)
    _check_text_encoder(text)
    channels = transformer.config["in_channels"]
    _require_equal(
        transformer, "out_channels", transformer.config["out_channels"] or channels, channels
    )
    _require_equal(vae, "latents_mean", _require_shape(vae, "latents_mean"), (channels,))
    _require_equal(vae, "latents_std", _require_shape(vae, "latents_std"), (channels,))
    captions = transformer.config["caption_channels"]
    _require_equal(text, "d_model", _embedding(text)[1], captions)
    if files.upsampler:
        upsampler = CheckpointWeights("upsampler", files.upsampler)
        _require_equal(
            upsampler, "in_channels", _require_shape(upsampler, "initial_conv.weight")[1], channels
        )
    if files.preview:
        preview = CheckpointWeights("preview", files.preview)
        _require_equal(
            preview, "latent_to_rgb", _require_shape(preview, "latent_to_rgb"), (channels + 1, 3)
        )


def check_loras(files: ComponentFiles, adapters: Iterable[LoraAdapter]) -> None:
    """That LoRAs change layers that the transformer has. Raises InvalidRequest."""
    shapes = CheckpointWeights("transformer", files.transformer).shapes
    for adapter in adapters:
        for pair in adapter.layers:
            here = shapes.get(f"{pair.layer}.weight")
            if here != pair.shape:
                what = f"{_format_shape(here)} here" if here else "not here"
                raise InvalidRequest(
                    f"loras: {adapter.label} was made for another model; {pair.layer} is {what} "
                    f"and {_format_shape(pair.shape)} there.",
                    param="loras",
                )


def _format_shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def check_vocabulary(files: ComponentFiles, highest: int) -> None:
    """That the text encoder knows a tokenizer's highest id. Raises CheckpointCorrupt."""
    words = _embedding(CheckpointWeights("text_encoder", files.text_encoder))[0]
    if not 0 <= highest < words:
        raise CheckpointCorrupt(
            f"{files.tokenizer} gives the token {highest}; {files.text_encoder} knows {words}."
        )


def _check_transformer(weights: CheckpointWeights) -> None:
    config = weights.config
    width = config["num_attention_heads"] * config["attention_head_dim"]
    _require_equal(
        weights,
        "shape of proj_in.weight",
        _require_shape(weights, "proj_in.weight"),
        (width, config["in_channels"]),
    )


def _check_vae(weights: CheckpointWeights) -> None:
    config = weights.config
    _require_equal(weights, "in_channels", config.get("in_channels", 3), 3)
    _require_equal(weights, "out_channels", config.get("out_channels", 3), 3)
    side, time = config.get("patch_size", 4), config.get("patch_size_t", 1)
    patch = 3 * side**2 * time
    _require_equal(
        weights, "patch_size", _require_shape(weights, "encoder.conv_in.conv.weight")[1], patch
    )
    _require_equal(
        weights, "patch_size", _require_shape(weights, "decoder.conv_out.conv.weight")[0], patch
    )


def _check_text_encoder(weights: CheckpointWeights) -> None:
    config = weights.config
    inner = config["num_heads"] * config["d_kv"]
    query = "encoder.block.0.layer.0.SelfAttention.q.weight"
    _require_equal(weights, "d_kv", _require_shape(weights, query), (inner, config["d_model"]))
    _require_equal(
        weights, "vocab_size", _embedding(weights), (config["vocab_size"], config["d_model"])
    )
    exact = config.get("relative_attention_num_buckets", 32) // 4
    if not 0 < exact < config.get("relative_attention_max_distance", 128):
        raise CheckpointCorrupt(f"{weights.path}: its relative attention has no such buckets.")


def _embedding(weights: CheckpointWeights) -> tuple[int, ...]:
    name = next((name for name in EMBEDDINGS if name in weights.shapes), EMBEDDINGS[0])
    return _require_shape(weights, name)


def _require_shape(weights: CheckpointWeights, name: str) -> tuple[int, ...]:
    shape = weights.shapes.get(name, ())
    if not shape:
        raise CheckpointCorrupt(f"{weights.path} holds no {name} of a {weights.component}.")
    return *shape, *[1] * (2 - len(shape) if name.endswith(".weight") else 0)


def _require_equal(weights: CheckpointWeights, what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise CheckpointCorrupt(
            f"{weights.path} does not fit the rest: {what} is {found} and should be {wanted}."
        )


@contextmanager
def blame_files(place: Path) -> Iterator[None]:
    """What a library raises while it builds from these files becomes CheckpointCorrupt."""
    try:
        yield
    except (FilmletError, MemoryError):
        raise
    except Exception as error:  # libraries raise anything over a wrong configuration
        if is_out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {error}".partition("\n")[0][:300]
        raise CheckpointCorrupt(f"{place} cannot be used ({reason}).") from error
